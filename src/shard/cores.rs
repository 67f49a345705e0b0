//! Which core each shard runs on, and which are left to the control threads.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How many shards are wanted, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardsWanted {
    /// One a core; from four cores up, one core is left to the control threads.
    Auto,
    /// So many, on cores in order; where there are more shards than cores, cores have several.
    Count(u16),
    /// One on each of these CPUs.
    Cpus(Vec<usize>),
}

/// Where threads run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cores {
    /// The CPU of each shard.
    pub shards: Vec<usize>,
    /// CPUs of the control threads: those that no shard has, or all if shards have them all.
    pub control: Vec<usize>,
}

/// Why shards can't be placed as wanted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CoresError {
    #[error("node.shards: this process may not run on CPU {cpu}, only on {allowed}")]
    NotAllowed { cpu: usize, allowed: String },
}

impl Cores {
    /// Places shards on the CPUs that this process may use.
    pub fn plan(wanted: &ShardsWanted) -> Result<Self, CoresError> {
        Self::plan_on(&allowed(), wanted)
    }

    /// `allowed` is not empty.
    fn plan_on(allowed: &[usize], wanted: &ShardsWanted) -> Result<Self, CoresError> {
        let count = allowed.len();
        let shards: Vec<usize> = match wanted {
            ShardsWanted::Auto if count >= 4 => allowed[..count - 1].to_vec(),
            ShardsWanted::Auto => allowed.to_vec(),
            ShardsWanted::Count(shards) => {
                allowed.iter().copied().cycle().take(usize::from(*shards)).collect()
            }
            ShardsWanted::Cpus(cpus) => {
                if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
                    let allowed = ranges(allowed);
                    return Err(CoresError::NotAllowed { cpu: *cpu, allowed });
                }
                cpus.clone()
            }
        };
        let rest = allowed.iter().copied().filter(|cpu| !shards.contains(cpu));
        let mut control: Vec<usize> = rest.collect();
        if control.is_empty() {
            control = allowed.to_vec();
        }
        Ok(Self { shards, control })
    }
}

/// Lets this thread run on these CPUs only. One that was taken from the process meanwhile costs
/// speed, not correctness.
pub fn pin(cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    let _ = sched_setaffinity(None, &set);
}

/// The CPUs that this process may use; at least one.
fn allowed() -> Vec<usize> {
    let known = sched_getaffinity(None)
        .map(|set| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>());
    known.ok().filter(|cpus| !cpus.is_empty()).unwrap_or_else(|| vec![0])
}

/// CPUs as a list of ranges, such as `0-3,8`.
fn ranges(cpus: &[usize]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for run in cpus.chunk_by(|left, right| *right == left + 1) {
        texts.push(match run {
            [first, .., last] => format!("{first}-{last}"),
            _ => run.iter().map(usize::to_string).collect(),
        });
    }
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_have_their_cores_and_control_threads_the_rest() {
        let eight: Vec<usize> = (0..8).collect();
        for (allowed, wanted, shards, control) in [
            (&[3][..], ShardsWanted::Auto, &[3][..], &[3][..]),
            (&[0, 1], ShardsWanted::Auto, &[0, 1], &[0, 1]),
            (&[2, 4, 6], ShardsWanted::Auto, &[2, 4, 6], &[2, 4, 6]),
            (&[0, 1, 2, 3], ShardsWanted::Auto, &[0, 1, 2], &[3]),
            (&eight, ShardsWanted::Count(3), &[0, 1, 2], &[3, 4, 5, 6, 7]),
            (&[0, 1], ShardsWanted::Count(3), &[0, 1, 0], &[0, 1]),
            (&eight, ShardsWanted::Cpus(vec![6, 2]), &[6, 2], &[0, 1, 3, 4, 5, 7]),
        ] {
            let cores = Cores::plan_on(allowed, &wanted).expect("they are allowed");
            assert_eq!((&cores.shards[..], &cores.control[..]), (shards, control), "{wanted:?}");
        }
        let error = Cores::plan_on(&[0, 1, 2, 5], &ShardsWanted::Cpus(vec![1, 3]));
        let text = error.expect_err("not allowed").to_string();
        assert_eq!(text, "node.shards: this process may not run on CPU 3, only on 0-2,5");
    }
}
