//! Figures: what was measured, beside its baseline and its goal.
#![allow(dead_code)] // each benchmark has goals of some kinds

use serde::Serialize;

/// What must hold.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The figure itself.
    AtMost(f64),
    /// The figure by its baseline.
    RatioAtMost(f64),
    RatioAtLeast(f64),
    /// The figure less its baseline.
    OverAtMost(f64),
    /// Shown for what it explains.
    None,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

#[derive(Debug, Serialize)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub measured: Spread,
    pub baseline_name: &'static str,
    pub baseline: Spread,
    /// Median of the rounds' ratios.
    pub ratio: f64,
    /// Median of the rounds' differences.
    pub over: f64,
    pub goal: Goal,
    pub is_met: bool,
}

#[derive(Debug, Default, Serialize)]
pub struct Figures {
    all: Vec<Figure>,
    notes: Vec<String>,
}

impl Spread {
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let [least, .., most] = sorted[..] else {
            return Self { least: sorted[0], median: sorted[0], most: sorted[0] };
        };
        Self { least, median: sorted[sorted.len() / 2], most }
    }
}

/// Whether this part of the benchmark is wanted: it stands on the command line, or nothing does.
pub fn wanted() -> impl Fn(&str) -> bool {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    move |part| words.is_empty() || words.iter().any(|word| word == part)
}

/// The value below which this share of them is.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

impl Figures {
    /// Adds a figure: one value a round, and that of the baseline in the same round.
    pub fn add(
        &mut self,
        (name, unit): (impl Into<String>, &'static str),
        measured: &[f64],
        (baseline_name, baseline): (&'static str, &[f64]),
        goal: Goal,
    ) {
        let ratios: Vec<f64> =
            measured.iter().zip(baseline).map(|(ours, bare)| ours / bare).collect();
        let ratio = Spread::of(&ratios).median;
        let overs: Vec<f64> =
            measured.iter().zip(baseline).map(|(ours, bare)| ours - bare).collect();
        let over = Spread::of(&overs).median;
        let measured = Spread::of(measured);
        let is_met = match goal {
            Goal::AtMost(most) => measured.median <= most,
            Goal::RatioAtMost(most) => ratio <= most,
            Goal::RatioAtLeast(least) => ratio >= least,
            Goal::OverAtMost(most) => over <= most,
            Goal::None => true,
        };
        let baseline = Spread::of(baseline);
        self.all.push(Figure {
            name: name.into(),
            unit,
            measured,
            baseline_name,
            baseline,
            ratio,
            over,
            goal,
            is_met,
        });
    }

    /// Adds a line that explains the figures.
    pub fn note(&mut self, note: String) {
        println!("{note}");
        self.notes.push(note);
    }

    /// Prints all; writes them as JSON, too, if the environment names a file (`BENCH_JSON`).
    pub fn tell(&self) {
        self.print();
        if let Some(path) = std::env::var_os("BENCH_JSON") {
            let json = serde_json::to_vec_pretty(self).expect("figures are JSON");
            std::fs::write(&path, json).expect("the file for the figures can be written");
        }
    }

    fn print(&self) {
        println!();
        for note in &self.notes {
            println!("{note}");
        }
        println!(
            "\n{:<36} {:>24} {:>34} {:>7}  {:<18} met",
            "figure (median, least-most)", "measured", "baseline", "ratio", "goal"
        );
        for figure in &self.all {
            let goal = match figure.goal {
                Goal::AtMost(most) => format!("<= {most} {}", figure.unit),
                Goal::RatioAtMost(most) => format!("ratio <= {most:.2}"),
                Goal::RatioAtLeast(least) => format!("ratio >= {least:.2}"),
                Goal::OverAtMost(most) => format!("<= baseline + {most:.0}"),
                Goal::None => "-".to_owned(),
            };
            let met = match (figure.goal, figure.is_met) {
                (Goal::None, _) => "-",
                (_, true) => "yes",
                (_, false) => "NO",
            };
            println!(
                "{:<36} {:>24} {:>34} {:>7.3}  {:<18} {}",
                format!("{}, {}", figure.name, figure.unit),
                shown(figure.measured),
                format!("{} {}", figure.baseline_name, shown(figure.baseline)),
                figure.ratio,
                goal,
                met
            );
        }
    }
}

fn shown(Spread { least, median, most }: Spread) -> String {
    let places = if median.abs() < 10.0 { 2 } else { 0 };
    if least == most {
        return format!("{median:.places$}");
    }
    format!("{median:.places$} ({least:.places$}-{most:.places$})")
}
