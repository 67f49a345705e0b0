//! Java programs by Maven: fetched once, kept under `target/backends`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Artifacts of Maven, as `group:name:version`, in one folder of jars.
#[derive(Clone, Copy, Debug)]
pub struct Jars {
    /// Name of the folder.
    pub name: &'static str,
    pub artifacts: &'static [&'static str],
    /// Transitive dependencies that must not come along, as `group:name`.
    pub exclusions: &'static [&'static str],
}

const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// Whether `java` and `mvn` can be run here; the one that can't.
pub fn missing() -> Option<&'static str> {
    ["java", "mvn"].into_iter().find(|program| {
        let version = Command::new(program)
            .arg("-version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        !version.is_ok_and(|status| status.success())
    })
}

impl Jars {
    /// The folder of the jars, filled if it is not yet. Processes and threads that fetch at the
    /// same time wait for each other. Panics, with Maven's words, if they can't be fetched.
    pub fn fetch(&self) -> PathBuf {
        let cache = crate::target_dir().join("backends");
        std::fs::create_dir_all(&cache).expect("the target folder can be written");
        let lock = File::create(cache.join(format!("{}.lock", self.name))).expect("a lock file");
        lock.lock().expect("the lock of the cache");
        let pom = self.pom();
        let folder = cache.join(self.name);
        let stamp = folder.join("pom.xml");
        if std::fs::read_to_string(&stamp).is_ok_and(|known| known == pom) {
            return folder;
        }
        // Into another folder first, so that a half-filled one is never used.
        let fresh = cache.join(format!("{}.fresh", self.name));
        for old in [&folder, &fresh] {
            let _ = std::fs::remove_dir_all(old);
        }
        std::fs::create_dir_all(&fresh).expect("the target folder can be written");
        std::fs::write(fresh.join("pom.xml"), &pom).expect("the target folder can be written");
        self.run_maven(&fresh);
        std::fs::rename(&fresh, &folder).expect("the target folder can be written");
        folder
    }

    fn run_maven(&self, folder: &Path) {
        let output = Command::new("mvn")
            .args(["-B", "-q", "-f"])
            .arg(folder.join("pom.xml"))
            .args([PLUGIN, "-DincludeScope=runtime"])
            .arg(format!("-DoutputDirectory={}", folder.display()))
            .stdin(Stdio::null())
            .output()
            .expect("mvn can be run");
        assert!(
            output.status.success(),
            "Maven can't fetch {}:\n{}{}",
            self.name,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn pom(&self) -> String {
        let exclude = |excluded: &&str| {
            let (group, name) = excluded.split_once(':').expect("group:name");
            let (group, name) = (tag("groupId", group), tag("artifactId", name));
            tag("exclusion", &format!("{group}{name}"))
        };
        let exclusions: String = self.exclusions.iter().map(exclude).collect();
        let dependencies: String = self
            .artifacts
            .iter()
            .map(|artifact| {
                let mut parts = artifact.split(':');
                let mut part = |name| tag(name, parts.next().expect("group:name:version"));
                let coordinates = part("groupId") + &part("artifactId") + &part("version");
                tag("dependency", &(coordinates + &tag("exclusions", &exclusions)))
            })
            .collect();
        format!(
            "<project><modelVersion>4.0.0</modelVersion><groupId>corecast</groupId>\
             <artifactId>{}</artifactId><version>1</version>\n<dependencies>\n{dependencies}\
             </dependencies></project>\n",
            self.name
        )
    }
}

fn tag(name: &str, text: &str) -> String {
    format!("<{name}>{text}</{name}>")
}
