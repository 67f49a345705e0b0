//! What a shard waits with. Tests of a shard run on each, and so say nothing of either.

use std::sync::OnceLock;

use crate::node::Node;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Runtime {
    Glommio,
    Epoll,
}

impl Runtime {
    /// The setting that chooses it.
    pub const fn set(self) -> &'static str {
        match self {
            Self::Glommio => "node.runtime=glommio",
            Self::Epoll => "node.runtime=epoll",
        }
    }

    /// Whether this machine has it; skips the test if not.
    pub fn is_here(self, program: &str) -> bool {
        static GLOMMIO: OnceLock<bool> = OnceLock::new();
        let is_here = self == Self::Epoll
            || *GLOMMIO.get_or_init(|| {
                let node = Node::launch(program, &["node.runtime=auto"]);
                node.get("/metrics").text().contains("runtime=\"glommio\"")
            });
        if !is_here {
            crate::skip("no glommio here", "a node says at its start what would help");
        }
        is_here
    }
}

/// Makes a test on each runtime of each function named, which takes a `Runtime`.
#[macro_export]
macro_rules! on_each_runtime {
    ($($test:ident),+ $(,)?) => {
        mod on_glommio {
            $($crate::on_each_runtime!(@ Glommio, $test);)+
        }
        mod on_epoll {
            $($crate::on_each_runtime!(@ Epoll, $test);)+
        }
    };
    (@ $runtime:ident, $test:ident) => {
        #[test]
        fn $test() {
            if $crate::runtime::Runtime::$runtime.is_here(env!("CARGO_BIN_EXE_corecast")) {
                super::$test($crate::runtime::Runtime::$runtime);
            }
        }
    };
}
