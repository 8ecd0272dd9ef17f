//! What was measured, and how it is told.

use serde::Serialize;

/// One measure beside its limit.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) name: &'static str,
    /// How much it is.
    pub(crate) value: f64,
    /// Of what.
    pub(crate) unit: &'static str,
    /// What the parts can do by themselves, measured in the same run, or a fixed goal.
    pub(crate) limit: f64,
    /// Value by limit.
    pub(crate) ratio: f64,
    /// What it is to be.
    #[serde(skip)]
    pub(crate) goal: Goal,
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At most so many times the limit.
    RatioAtMost(f64),
    /// At least so many times the limit, and at least so much.
    AtLeast {
        /// Times the limit.
        ratio: f64,
        /// By itself.
        value: f64,
    },
    /// Less than this, by itself.
    Below(f64),
    /// No goal: it explains others.
    Shown,
}

impl Figure {
    pub(crate) fn new(name: &'static str, value: f64, unit: &'static str, limit: f64, goal: Goal) -> Self {
        Self { name, value, unit, limit, ratio: value / limit, goal }
    }

    /// A figure that only explains others.
    pub(crate) fn shown(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self::new(name, value, unit, value, Goal::Shown)
    }

    /// Whether it is as it is to be.
    pub(crate) fn is_reached(&self) -> bool {
        match self.goal {
            Goal::RatioAtMost(most) => self.ratio <= most,
            Goal::AtLeast { ratio, value } => self.ratio >= ratio && self.value >= value,
            Goal::Below(most) => self.value < most,
            Goal::Shown => true,
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let Self { name, value, unit, limit, ratio, .. } = self;
        let (value, limit) = (short(*value), short(*limit));
        match self.goal {
            Goal::Shown => format!("    {name:<34} {value:>11} {unit}"),
            _ => {
                let (goal, reached) = (self.goal, if self.is_reached() { "reached" } else { "NOT REACHED" });
                format!("{name:<38} {value:>11} {unit:<10} limit {limit:>11}  ratio {ratio:>5.2}  {goal}: {reached}")
            }
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RatioAtMost(most) => write!(f, "at most {most} of the limit"),
            Self::AtLeast { ratio, value } if *value > 0.0 => {
                write!(f, "at least {ratio} of the limit and {}", short(*value))
            }
            Self::AtLeast { ratio, .. } => write!(f, "at least {ratio} of the limit"),
            Self::Below(most) => write!(f, "below {}", short(*most)),
            Self::Shown => Ok(()),
        }
    }
}

/// Three digits, or all of them before the point.
fn short(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
