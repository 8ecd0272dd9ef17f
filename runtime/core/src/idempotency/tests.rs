use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn window(span_seconds: u64, max_keys: usize) -> Window {
    Window::new(Duration::from_secs(span_seconds), max_keys)
}

/// Which of the keys 0 to 9 are known.
fn known(window: &Window, now: Timestamp) -> Vec<u128> {
    (0..10).filter(|&key| window.contains(KeyHash(key), now)).collect()
}

#[test]
fn a_key_is_known_for_the_span_and_at_most_a_quarter_longer() {
    for (script, now, expected) in [
        (vec![(0, 1)], 0, vec![1]),
        (vec![(0, 1)], 100, vec![1]),
        (vec![(0, 1)], 101, vec![]),
        // Within a quarter of the span keys share a bucket, and live as long as its newest one.
        (vec![(0, 1), (25, 2)], 125, vec![1, 2]),
        (vec![(0, 1), (25, 2)], 126, vec![]),
        (vec![(0, 1), (26, 2)], 101, vec![2]),
        (vec![(0, 1), (50, 1)], 150, vec![1]),
        // Time does not go backwards.
        (vec![(50, 1), (0, 2)], 150, vec![1, 2]),
    ] {
        let mut window = window(100, 1000);
        for &(seconds, key) in &script {
            window.insert(at(seconds), [KeyHash(key)]);
        }
        assert_eq!(known(&window, at(now)), expected, "{script:?} at {now}");
        window.expire(at(now));
        assert_eq!(known(&window, at(now)), expected, "{script:?} at {now}, expired");
        assert_eq!(window.is_empty(), expected.is_empty(), "{script:?} at {now}");
    }
}

#[test]
fn a_full_window_forgets_its_oldest_quarter_and_says_so() {
    let mut window = window(100, 8);
    for key in 0..8 {
        window.insert(at(u64::try_from(key).unwrap()), [KeyHash(key)]);
    }
    assert_eq!((window.len(), window.effective_span(at(7))), (8, Duration::from_secs(100)));
    window.insert(at(8), [KeyHash(8)]);
    assert_eq!(known(&window, at(8)), [2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(window.effective_span(at(8)), Duration::from_secs(7));
    assert_eq!(window.effective_span(at(60)), Duration::from_secs(59));
    assert_eq!(window.effective_span(at(500)), Duration::from_secs(100));
}

#[test]
fn one_insertion_can_fill_the_window_many_times() {
    let mut full = window(100, 1000);
    full.insert(at(0), (0..10_500).map(KeyHash));
    assert!(full.len() > 750 && full.len() <= 1000, "{}", full.len());
    assert!((9_750..10_500).all(|key| full.contains(KeyHash(key), at(0))));
    assert_eq!(full.effective_span(at(0)), Duration::ZERO);

    let mut smallest = window(100, 0);
    smallest.insert(at(0), [KeyHash(1), KeyHash(2)]);
    assert_eq!(known(&smallest, at(0)), [2]);
}

#[test]
fn the_units_of_a_function_share_its_keys() {
    let bounds = Bounds { span: Duration::from_secs(100), max_keys: 8 };
    assert_eq!((bounds.oldest(at(150)), bounds.oldest(at(50))), (at(50), at(0)));
    for (units, expected) in [(0, 8), (1, 8), (2, 4), (3, 3), (8, 1), (9, 1)] {
        let mut window = bounds.window(units);
        assert_eq!(window.effective_span(at(0)), bounds.span);
        (0..expected).for_each(|key| window.insert(at(0), [KeyHash(key)]));
        assert_eq!(known(&window, at(0)).len() as u128, expected, "{units}");
        window.insert(at(0), [KeyHash(9)]);
        assert!(!window.contains(KeyHash(0), at(0)), "{units}");
    }
}

#[test]
fn an_empty_window_takes_no_memory() {
    let mut window = window(100, 1000);
    assert_eq!(window.allocated_bytes(), 0);
    window.insert(at(0), []);
    assert_eq!((window.allocated_bytes(), window.is_empty()), (0, true));
    window.insert(at(0), (0..1000).map(KeyHash));
    window.expire(at(1000));
    assert_eq!((window.allocated_bytes(), window.is_empty()), (0, true));
}

#[test]
fn memory_is_bounded_by_the_number_of_keys() {
    let mut window = window(1_000_000, 200_000);
    for batch in 0..500_u64 {
        window.insert(at(batch), (0..1000).map(|n| KeyHash::of(&format!("{batch}/{n}"))));
        let bytes_a_key = window.allocated_bytes() / window.len();
        assert!(window.len() <= 200_000 && bytes_a_key < 27, "{} keys of {bytes_a_key} bytes", window.len());
    }
    assert!(window.buckets.len() <= 5, "{}", window.buckets.len());
}

/// The window as its documentation has it, slowly.
#[derive(Default)]
struct Model {
    inserted: Vec<(u64, u128)>,
}

impl Model {
    fn insert(&mut self, seconds: u64, key: u128) {
        let newest = self.inserted.last().map_or(0, |&(newest, _)| newest);
        self.inserted.push((newest.max(seconds), key));
    }

    /// The last time this key was inserted.
    fn last(&self, key: u128) -> Option<u64> {
        self.inserted.iter().rev().find(|&&(_, k)| k == key).map(|&(seconds, _)| seconds)
    }
}

proptest! {
    #[test]
    fn what_a_window_knows_lies_between_its_bounds(
        steps in prop::collection::vec((0..20_u64, prop::collection::vec(0..40_u128, 0..6), any::<bool>()), 0..60),
        max_keys in prop_oneof![1..40_usize, Just(10_000)],
    ) {
        const SPAN: u64 = 40;
        let mut window = window(SPAN, max_keys);
        let mut model = Model::default();
        let mut now = 0;
        for (passed, keys, expire) in steps {
            now += passed;
            if expire {
                window.expire(at(now));
            }
            window.insert(at(now), keys.iter().map(|&key| KeyHash(key)));
            for key in keys {
                model.insert(now, key);
            }
            prop_assert!(window.len() <= max_keys);
            let effective = window.effective_span(at(now));
            prop_assert!(effective <= Duration::from_secs(SPAN));
            for key in 0..40 {
                let age = model.last(key).map(|last| now - last);
                let is_known = window.contains(KeyHash(key), at(now));
                // Strictly younger than the effective span: keys of the moment up to which keys were dropped are gone.
                let is_owed = age.is_some_and(|age| Duration::from_secs(age) < effective);
                let is_allowed = age.is_some_and(|age| age <= SPAN + SPAN / 4);
                prop_assert!(!is_owed || is_known, "key {key} of age {age:?} is forgotten");
                prop_assert!(!is_known || is_allowed, "key {key} of age {age:?} is known");
            }
            if max_keys == 10_000 {
                prop_assert_eq!(effective, Duration::from_secs(SPAN));
            }
        }
    }

    #[test]
    fn a_restored_window_knows_the_same(
        steps in prop::collection::vec((0..20_u64, prop::collection::vec(0..1000_u128, 0..20), any::<bool>()), 0..40),
        max_keys in 1..400_usize,
    ) {
        let (mut original, mut restored) = (window(40, max_keys), window(40, max_keys));
        let mut now = 0;
        for (passed, keys, expire) in &steps {
            now += passed;
            if *expire {
                original.expire(at(now));
            }
            original.insert(at(now), keys.iter().map(|&key| KeyHash(key)));
        }
        let mut time = 0;
        for (passed, keys, _) in &steps {
            time += passed;
            restored.insert(at(time), keys.iter().map(|&key| KeyHash(key)));
        }
        prop_assert_eq!(restored.len(), original.len());
        prop_assert_eq!(restored.effective_span(at(now)), original.effective_span(at(now)));
        for key in 0..1000 {
            prop_assert_eq!(original.contains(KeyHash(key), at(now)), restored.contains(KeyHash(key), at(now)));
        }
    }
}
