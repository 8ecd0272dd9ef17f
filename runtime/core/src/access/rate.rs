//! How many requests a token may send: a bucket that fills steadily, of which one instant tells how full it is (the generic cell rate
//! algorithm).

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::TokenId;
use crate::limits;
use crate::time::Timestamp;

/// So many requests in each unit of time, of which so many may come at once: `50/s`, `600/m`, `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Kept", into = "Kept")]
pub struct Rate {
    requests: NonZeroU32,
    per: Per,
    burst: NonZeroU32,
}

/// A unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Per {
    Second,
    Minute,
    Hour,
}

impl Per {
    const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "m",
            Self::Hour => "h",
        }
    }

    const fn nanos(self) -> u64 {
        let seconds = match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        };
        seconds * 1_000_000_000
    }
}

/// As a log keeps it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    requests: u32,
    per: Per,
    burst: u32,
}

impl From<Rate> for Kept {
    fn from(rate: Rate) -> Self {
        Self { requests: rate.requests.get(), per: rate.per, burst: rate.burst.get() }
    }
}

impl TryFrom<Kept> for Rate {
    type Error = InvalidRate;

    fn try_from(Kept { requests, per, burst }: Kept) -> Result<Self, InvalidRate> {
        let requests = in_bounds(requests).ok_or(InvalidRate::Requests)?;
        Self { requests, per, burst: requests }.with_burst(burst)
    }
}

fn in_bounds(requests: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(requests).filter(|requests| requests.get() <= limits::RATE_MAX_REQUESTS)
}

impl Rate {
    /// The same, of which so many may come at once. Unless it is told, that is as many as in one unit of time.
    ///
    /// # Errors
    /// If it is none, or more than [`limits::RATE_MAX_REQUESTS`].
    pub fn with_burst(self, requests: u32) -> Result<Self, InvalidRate> {
        let burst = in_bounds(requests).ok_or(InvalidRate::Burst)?;
        Ok(Self { burst, ..self })
    }

    /// How many may come at once.
    #[must_use]
    pub const fn burst(self) -> u32 {
        self.burst.get()
    }

    /// After so many nanoseconds there is room for one more. Rounded up, so that there are never more.
    fn interval_nanos(self) -> u64 {
        self.per.nanos().div_ceil(u64::from(self.requests.get()))
    }
}

impl fmt::Display for Rate {
    /// Without the burst.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.requests, self.per.as_str())
    }
}

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let (requests, per) = text.split_once('/').ok_or(InvalidRate::Requests)?;
        let per = Per::ALL.into_iter().find(|one| one.as_str() == per).ok_or(InvalidRate::Requests)?;
        let is_number = requests.bytes().all(|b| b.is_ascii_digit());
        let requests = requests.parse().ok().filter(|_| is_number).and_then(in_bounds).ok_or(InvalidRate::Requests)?;
        Ok(Self { requests, per, burst: requests })
    }
}

/// Why something is no rate. Says what to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidRate {
    /// The requests, or the unit of time.
    Requests,
    /// How many at once.
    Burst,
}

impl fmt::Display for InvalidRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max = limits::RATE_MAX_REQUESTS;
        match self {
            Self::Requests => write!(
                f,
                "a rate is a number of requests from 1 to {max} for each second, minute or hour; write it as `50/s`, `600/m` or `1000/h`"
            ),
            Self::Burst => write!(f, "what may come at once is a number of requests from 1 to {max}"),
        }
    }
}

impl std::error::Error for InvalidRate {}

/// Knows how much room each token has left. Keeps at most [`limits::RATED_TOKENS_MAX`] of them.
#[derive(Clone, Debug, Default)]
pub struct Limiter(BTreeMap<TokenId, Meter>);

/// What is known of one token.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    /// When there will be room for as many as may come at once.
    full: Timestamp,
    refused: u64,
}

impl Limiter {
    /// Lets a request through, if there is room for it.
    ///
    /// # Errors
    /// After which time there will be room, if nothing else comes until then.
    pub fn admit(&mut self, id: &TokenId, rate: Rate, now: Timestamp) -> Result<(), Duration> {
        if self.0.len() >= limits::RATED_TOKENS_MAX && !self.0.contains_key(id) {
            // Whoever came last the longest ago has the most room again.
            let idle = self.0.iter().min_by_key(|(_, meter)| meter.full).map(|(id, _)| id.clone());
            idle.map(|id| self.0.remove(&id));
        }
        let interval = rate.interval_nanos();
        let room = Duration::from_nanos(interval.saturating_mul(u64::from(rate.burst.get() - 1)));
        let meter = self.0.entry(id.clone()).or_default();
        let full = meter.full.max(now);
        match full.since(now).checked_sub(room).filter(|wait| !wait.is_zero()) {
            Some(wait) => {
                meter.refused = meter.refused.saturating_add(1);
                Err(wait)
            }
            None => {
                meter.full = full + Duration::from_nanos(interval);
                Ok(())
            }
        }
    }

    /// How many requests of each token were refused.
    pub fn refused(&self) -> impl Iterator<Item = (&TokenId, u64)> {
        self.0.iter().filter(|(_, meter)| meter.refused > 0).map(|(id, meter)| (id, meter.refused))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn id(number: u32) -> TokenId {
        format!("{number:012x}").parse().unwrap()
    }

    fn rate(text: &str, burst: u32) -> Rate {
        text.parse::<Rate>().unwrap().with_burst(burst).unwrap()
    }

    /// For each request, after which milliseconds it comes: `+` if it is let through, else after which milliseconds there is room.
    fn check(rate: Rate, script: &[(u64, &str)]) {
        let mut limiter = Limiter::default();
        for (at, expected) in script {
            let said = match limiter.admit(&id(1), rate, START + Duration::from_millis(*at)) {
                Ok(()) => "+".to_owned(),
                Err(wait) => format!("{}", wait.as_secs_f64() * 1000.0),
            };
            assert_eq!(said, *expected, "{rate} at {at}");
        }
    }

    #[test]
    fn what_comes_at_once_is_let_through_up_to_the_burst_and_then_as_the_rate_says() {
        check(rate("10/s", 3), &[(0, "+"), (0, "+"), (0, "+"), (0, "100"), (60, "40"), (100, "+"), (100, "100")]);
        // Nothing is saved up beyond the burst, and a refused one costs nothing.
        check(rate("10/s", 2), &[(0, "+"), (9000, "+"), (9000, "+"), (9000, "100"), (9000, "100"), (9100, "+")]);
        check(rate("1/s", 1), &[(0, "+"), (999, "1"), (1000, "+"), (1000, "1000")]);
        check(rate("60/m", 1), &[(0, "+"), (999, "1"), (1000, "+")]);
        check(rate("1/h", 1), &[(0, "+"), (0, "3600000"), (3_599_999, "1"), (3_600_000, "+")]);
        // A clock that stands still or goes back lets nobody in for nothing.
        check(rate("10/s", 1), &[(500, "+"), (500, "100"), (400, "200"), (600, "+")]);
    }

    #[test]
    fn one_token_takes_nothing_from_another() {
        let mut limiter = Limiter::default();
        let one = rate("1/h", 1);
        for number in 0..3 {
            assert_eq!(limiter.admit(&id(number), one, START), Ok(()));
        }
        for _ in 0..2 {
            assert!(limiter.admit(&id(1), one, START).is_err());
        }
        assert_eq!(limiter.refused().collect::<Vec<_>>(), [(&id(1), 2)]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_idlest_goes_first() {
        let mut limiter = Limiter::default();
        let most = u32::try_from(limits::RATED_TOKENS_MAX).unwrap();
        let slow = rate("1/h", 1);
        for number in 0..most {
            assert_eq!(limiter.admit(&id(number), slow, START + Duration::from_millis(number.into())), Ok(()));
        }
        let now = START + Duration::from_secs(60);
        assert_eq!(limiter.admit(&id(most), slow, now), Ok(()));
        assert_eq!(limiter.0.len(), limits::RATED_TOKENS_MAX);
        assert!(limiter.admit(&id(1), slow, now).is_err(), "it was not the idlest");
        assert!(!limiter.0.contains_key(&id(0)));
    }

    #[test]
    fn rates_are_written_with_their_unit() {
        for (text, burst) in [("50/s", 50), ("600/m", 600), ("1000/h", 1000), ("1000000/s", 1_000_000)] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.to_string().as_str(), rate.burst()), (text, burst));
        }
        for text in
            ["", "50", "/s", "0/s", "+5/s", "5 /s", "-1/s", "5/d", "5/", "5/s/s", "1000001/s", "99999999999/s", "x/s"]
        {
            let told = text.parse::<Rate>().unwrap_err().to_string();
            assert!(told.contains("write it as `50/s`, `600/m` or `1000/h`"), "{text}: {told}");
        }
        for burst in [0, 1_000_001] {
            assert_eq!("5/s".parse::<Rate>().unwrap().with_burst(burst), Err(InvalidRate::Burst));
        }
    }

    #[test]
    fn a_rate_is_kept_so() {
        let kept = r#"{"requests":600,"per":"minute","burst":5}"#;
        assert_eq!(serde_json::to_string(&rate("600/m", 5)).unwrap(), kept);
        assert_eq!(serde_json::from_str::<Rate>(kept).unwrap(), rate("600/m", 5));
        for wrong in [
            r#"{"requests":0,"per":"minute","burst":5}"#,
            r#"{"requests":5,"per":"minute","burst":0}"#,
            r#"{"requests":5,"per":"day","burst":5}"#,
            r#"{"requests":5,"per":"minute","burst":5,"more":1}"#,
        ] {
            assert!(serde_json::from_str::<Rate>(wrong).is_err(), "{wrong}");
        }
    }

    fn any_rate() -> impl Strategy<Value = Rate> {
        let per = prop_oneof![Just(Per::Second), Just(Per::Minute), Just(Per::Hour)];
        let up_to = |most: u32| (1..=most).prop_map(|n| NonZeroU32::new(n).unwrap());
        (up_to(limits::RATE_MAX_REQUESTS), per, up_to(100)).prop_map(|(requests, per, burst)| Rate {
            requests,
            per,
            burst,
        })
    }

    proptest! {
        /// In no span of time more are let through than may come at once, and what the rate gives in that time.
        #[test]
        fn never_more_than_the_rate_and_the_burst(
            requests in 1_u32..200, burst in 1_u32..20, gaps in prop::collection::vec(0_u64..100_000_000, 1..200)
        ) {
            let rate = rate(&format!("{requests}/s"), burst);
            let (mut limiter, mut now, mut through) = (Limiter::default(), START, Vec::new());
            for gap in gaps {
                now = now + Duration::from_nanos(gap);
                if limiter.admit(&id(1), rate, now).is_ok() {
                    through.push(now);
                }
            }
            for (first, from) in through.iter().enumerate() {
                for (last, to) in through.iter().enumerate().skip(first) {
                    let gives = to.since(*from).as_nanos() / u128::from(rate.interval_nanos());
                    prop_assert!((last - first + 1) as u128 <= u128::from(burst) + gives);
                }
            }
        }

        /// Who waits as told is let through, and who comes a nanosecond before that is not. Who keeps to the rate is never refused.
        #[test]
        fn what_is_told_is_right(rate in any_rate(), extra in 0_u64..1000) {
            let mut limiter = Limiter::default();
            let start = START + Duration::from_nanos(extra);
            for _ in 0..rate.burst() {
                prop_assert!(limiter.admit(&id(1), rate, start).is_ok());
            }
            let wait = limiter.admit(&id(1), rate, start).unwrap_err();
            prop_assert!(limiter.admit(&id(1), rate, start + wait - Duration::from_nanos(1)).is_err());
            prop_assert!(limiter.admit(&id(1), rate, start + wait).is_ok());
            let mut steady = Limiter::default();
            for number in 0..100_u64 {
                let at = start + Duration::from_nanos(rate.interval_nanos() * number);
                prop_assert!(steady.admit(&id(1), rate, at).is_ok());
            }
        }
    }
}
