//! Canaries: a new revision that runs a share of the keys beside the active one.
//!
//! Which keys those are follows from the key and the number of the revision alone, so that all instances agree on it, a key
//! stays where it is as long as the canary stands, and another canary gets others. A larger share has the keys of a smaller one.

use std::fmt;
use std::hash::Hasher;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::manifest::{Function, Grants};
use crate::policy::IdempotencyPolicy;

/// All keys, in hundredths of one per cent.
const ALL: u16 = 10_000;
/// The second half of the hash's key; the first one is the revision's number.
const SEED: u64 = 0x6d69_6c6c_7261_6365;

/// The share of the keys that a canary runs: more than none and less than all, in steps of 0.01 per cent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u16", try_from = "u16")]
pub struct Share(u16);

/// Why something is not a share. Says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidShare {
    what: String,
}

impl fmt::Display for InvalidShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        write!(
            f,
            "`{what}` is no share of the keys; write a percentage between 0.01% and 99.99%, such as \"5%\" or \"0.5%\""
        )
    }
}

impl std::error::Error for InvalidShare {}

impl Share {
    /// In hundredths of one per cent: 1 to 9,999.
    #[must_use]
    pub const fn basis_points(self) -> u16 {
        self.0
    }

    /// Whether the canary with this revision's number runs the events with this key.
    #[must_use]
    pub fn takes(self, revision: u64, key: &[u8]) -> bool {
        // SipHash with fixed keys: the same on every instance and by every version.
        #[expect(deprecated, reason = "the hasher with keys that are given; the default one may change")]
        let mut hasher = std::hash::SipHasher::new_with_keys(revision, SEED);
        hasher.write(key);
        hasher.finish() % u64::from(ALL) < u64::from(self.0)
    }
}

impl From<Share> for u16 {
    fn from(share: Share) -> Self {
        share.0
    }
}

impl TryFrom<u16> for Share {
    type Error = InvalidShare;

    fn try_from(basis_points: u16) -> Result<Self, InvalidShare> {
        match basis_points {
            1..ALL => Ok(Self(basis_points)),
            _ => Err(InvalidShare { what: format!("{}%", f64::from(basis_points) / 100.0) }),
        }
    }
}

impl FromStr for Share {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let invalid = || InvalidShare { what: text.chars().take(40).collect() };
        let number = text.strip_suffix('%').ok_or_else(invalid)?;
        let (whole, hundredths) = number.split_once('.').unwrap_or((number, "00"));
        let digits = |part: &str| (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(hundredths) {
            return Err(invalid());
        }
        // Two digits each: `5` after the point is fifty hundredths.
        let basis_points: u16 = format!("{whole}{hundredths:0<2}").parse().map_err(|_| invalid())?;
        Self::try_from(basis_points).map_err(|_| invalid())
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, hundredths) = (self.0 / 100, self.0 % 100);
        match (hundredths, hundredths % 10) {
            (0, _) => write!(f, "{whole}%"),
            (_, 0) => write!(f, "{whole}.{}%", hundredths / 10),
            (_, _) => write!(f, "{whole}.{hundredths:02}%"),
        }
    }
}

/// The settings, by their keys in the manifest, in which two revisions must be alike so that one can be the canary beside the
/// other: those that say which events there are, in which order they are handled, and what becomes of failures. What a single
/// invocation is told and allowed may differ.
#[must_use]
pub fn differing(active: &Function, canary: &Function) -> Vec<&'static str> {
    let Function {
        name: _,
        build: _,
        component: _,
        watch: _,
        topics,
        from,
        filter,
        ordering,
        retry,
        breaker,
        idempotency: IdempotencyPolicy { window, max_keys, key },
        instance: _,
        limits: _,
        parked,
        grants: Grants { .. },
        config: _,
        deadlines,
    } = active;
    [
        ("topics", *topics != canary.topics),
        ("from", *from != canary.from),
        ("filter", *filter != canary.filter),
        ("ordering", *ordering != canary.ordering),
        ("retry", *retry != canary.retry),
        ("breaker", *breaker != canary.breaker),
        ("idempotency.window", *window != canary.idempotency.window),
        ("idempotency.max-keys", *max_keys != canary.idempotency.max_keys),
        ("idempotency.key", *key != canary.idempotency.key),
        ("parked", *parked != canary.parked),
        ("dead-letter.deadline", *deadlines != canary.deadlines),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn a_share_is_a_percentage_with_two_decimals_at_most() {
        for (text, expected) in [
            ("5%", Some((500, "5%"))),
            ("0.5%", Some((50, "0.5%"))),
            ("0.05%", Some((5, "0.05%"))),
            ("0.01%", Some((1, "0.01%"))),
            ("05.50%", Some((550, "5.5%"))),
            ("12.34%", Some((1234, "12.34%"))),
            ("99.99%", Some((9999, "99.99%"))),
            ("0%", None),
            ("0.00%", None),
            ("100%", None),
            ("0.005%", None),
            ("5", None),
            ("", None),
            ("%", None),
            (".5%", None),
            ("5.%", None),
            ("-5%", None),
            ("+5%", None),
            ("5 %", None),
            ("5%%", None),
            ("1e1%", None),
            ("٥%", None),
        ] {
            let share = text.parse::<Share>();
            let found = share.as_ref().ok().map(|share| (share.basis_points(), share.to_string()));
            assert_eq!(found, expected.map(|(points, shown)| (points, shown.to_owned())), "{text}");
            if let Err(error) = share {
                assert!(error.to_string().contains("such as \"5%\""), "{error}");
            }
        }
    }

    #[test]
    fn a_canary_takes_its_share_of_the_keys() {
        for (revision, text) in [(3, "5%"), (3, "50%"), (4, "5%"), (4, "0.5%"), (1_000_000, "99.99%"), (7, "20%")] {
            let share: Share = text.parse().unwrap();
            for (what, name) in [("k", "few bytes"), ("customer-000000000000", "many")] {
                let keys = 20_000_u32;
                let taken = (0..keys).filter(|n| share.takes(revision, format!("{what}{n}").as_bytes())).count();
                let found = taken as f64 / f64::from(keys) * 100.0;
                let wanted = f64::from(share.basis_points()) / 100.0;
                assert!((found - wanted).abs() <= 1.0, "{text} of revision {revision}, {name}: {found}%");
            }
        }
    }

    #[test]
    fn another_canary_gets_other_keys() {
        let share: Share = "10%".parse().unwrap();
        let keys: Vec<String> = (0..10_000).map(|n| format!("k{n}")).collect();
        let both = keys.iter().filter(|key| share.takes(3, key.as_bytes()) && share.takes(5, key.as_bytes())).count();
        // A tenth of a tenth.
        assert!((50..150).contains(&both), "{both}");
    }

    #[test]
    fn which_keys_they_are_is_pinned() {
        let share: Share = "30%".parse().unwrap();
        let taken =
            |revision| -> Vec<u32> { (0..20).filter(|n| share.takes(revision, format!("k{n}").as_bytes())).collect() };
        let expected = (vec![1, 3, 8, 11, 12, 19], vec![0, 1, 2, 3, 6, 8, 11, 15, 16, 18]);
        assert_eq!((taken(3), taken(5)), expected);
    }

    #[test]
    fn a_canary_must_take_events_in_as_the_active_revision_does() {
        let read = |rest: &str| {
            let text = format!("application = 'shop'\n[functions.pay]\ncomponent = 'pay.wasm'\n{rest}");
            let (manifest, _) = Manifest::parse(&text).unwrap_or_else(|problems| panic!("{rest}: {problems:?}"));
            manifest.functions.into_iter().next().unwrap()
        };
        let plain = read("topics = ['orders']");
        for (rest, expected) in [
            ("topics = ['orders']", &[][..]),
            ("topics = ['orders']\nconfig = { a = 'x' }\nlimits = { time = '9s' }", &[]),
            ("topics = ['orders']\ngrants = { publish = ['paid'], state = true }\ninstance = { reuse = 5 }", &[]),
            ("topics = ['orders', 'more']", &["topics"]),
            ("topics = ['orders']\nfrom = 'latest'", &["from"]),
            ("topics = ['orders']\nfilter = 'true'\nordering = 'none'", &["filter", "ordering"]),
            ("topics = ['orders']\nretry = { attempts = 2 }", &["retry"]),
            ("topics = ['orders']\nbreaker = { enabled = false }", &["breaker"]),
            ("topics = ['orders']\nidempotency = { window = '3h' }", &["idempotency.window"]),
            ("topics = ['orders']\nidempotency = { max-keys = 1000 }", &["idempotency.max-keys"]),
            ("topics = ['orders']\nidempotency = { key = 'event.id' }", &["idempotency.key"]),
            ("topics = ['orders']\nparked = { limit = 3 }", &["parked"]),
            ("topics = ['orders']\ndead-letter.deadline = { unknown = '1h' }", &["dead-letter.deadline"]),
        ] {
            assert_eq!(differing(&plain, &read(rest)), expected, "{rest}");
            assert_eq!(differing(&read(rest), &plain), expected, "{rest}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(points in 1u16..10_000, text: String) {
            let share = Share::try_from(points).unwrap();
            prop_assert_eq!(share.to_string().parse::<Share>(), Ok(share));
            let json = serde_json::to_string(&share).unwrap();
            prop_assert_eq!(json, points.to_string());
            drop(text.parse::<Share>());
        }

        #[test]
        fn a_larger_share_has_the_keys_of_a_smaller_one(one in 1u16..10_000, other in 1u16..10_000, key: Vec<u8>, revision: u64) {
            let (small, large) = (Share(one.min(other)), Share(one.max(other)));
            prop_assert!(!small.takes(revision, &key) || large.takes(revision, &key));
        }
    }
}
