//! The 20,000 flights as a feed would send them: some rows repeated, some malformed. The same each time.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Flights, each different from all others.
pub const FLIGHTS: usize = 20_000;
/// Flights that are more than 60 minutes late.
pub const DELAYED: usize = 1_089;
/// Rows that are sent a second time.
pub const REPEATED: usize = 1_000;
/// Rows that are not the row of a flight.
pub const MALFORMED: usize = 100;

const FLIGHTS_JSON: &str = include_str!("../../data/flights-20k.json");

/// One row to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The ordering key: the origin, so that a repeated row lands in the same partition as the first one. A malformed row
    /// has none.
    pub key: Option<String>,
    /// The row itself. JSON, where it is not malformed.
    pub value: String,
}

impl Row {
    /// The row as a CloudEvent in the JSON format, on one line. `number` makes its id.
    #[must_use]
    pub fn to_cloud_event(&self, number: usize) -> String {
        let mut event = json!({
            "specversion": "1.0",
            "id": format!("row-{number}"),
            "source": "/feeds/flights",
            "type": "flight.row",
        });
        if let Some(key) = &self.key {
            event["partitionkey"] = key.as_str().into();
        }
        (event["datacontenttype"], event["data"]) = match serde_json::from_str::<Value>(&self.value) {
            Ok(row) => ("application/json".into(), row),
            Err(_) => ("text/plain".into(), self.value.as_str().into()),
        };
        event.to_string()
    }
}

#[derive(Deserialize, Serialize)]
struct Flight {
    date: String,
    delay: i32,
    distance: u32,
    origin: String,
    destination: String,
}

/// All rows in the order in which the feed sends them: 20,000 flights by date, among them 1,000 rows again, each between 1 and
/// 500 rows after the first time, and 100 malformed rows, ten of each kind.
///
/// # Panics
/// If the file of flights is not what this was written for.
#[must_use]
pub fn rows() -> Vec<Row> {
    let flights: Vec<Flight> = serde_json::from_str(FLIGHTS_JSON).expect("the flights are JSON");
    assert_eq!(flights.len(), FLIGHTS, "the file of flights has changed");
    let mut random = Random(2001);
    let mut placed: Vec<(usize, Row)> = Vec::with_capacity(FLIGHTS + REPEATED + MALFORMED);
    placed.extend(flights.iter().enumerate().map(|(at, flight)| (at, well_formed(flight))));
    for at in random.distinct(REPEATED, FLIGHTS) {
        placed.push((at + random.below(500), well_formed(&flights[at])));
    }
    for number in 0..MALFORMED {
        let at = random.below(FLIGHTS);
        placed.push((at, Row { key: None, value: malformed(number % 10, &flights[at]) }));
    }
    // A stable sort: at the same place the flight comes before its repetition.
    placed.sort_by_key(|(at, _)| *at);
    placed.into_iter().map(|(_, row)| row).collect()
}

fn well_formed(flight: &Flight) -> Row {
    Row { key: Some(flight.origin.clone()), value: to_json(flight).to_string() }
}

fn to_json(flight: &Flight) -> Value {
    serde_json::to_value(flight).expect("a flight has a JSON form")
}

/// A row spoilt in one of ten ways.
fn malformed(kind: usize, flight: &Flight) -> String {
    let mut row = to_json(flight);
    match kind {
        0 => drop(row.as_object_mut().and_then(|row| row.remove("delay"))),
        1 => row["delay"] = "late".into(),
        2 => row["distance"] = (-1).into(),
        3 => row["date"] = "2001/02/30 24:61".into(),
        4 => row["origin"] = Value::Null,
        5 => row["destination"] = "somewhere".into(),
        6 => row = json!([row]),
        7 => row = json!({}),
        8 => {
            let text = row.to_string();
            return text[..text.len() / 2].to_owned();
        }
        _ => return format!("{},{},{}", flight.date, flight.origin, flight.destination),
    }
    row.to_string()
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    /// This many different numbers below the bound.
    fn distinct(&mut self, count: usize, bound: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..bound).collect();
        for at in 0..count {
            let other = at + self.below(bound - at);
            numbers.swap(at, other);
        }
        numbers.truncate(count);
        numbers
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_feed_holds_what_the_counts_say() {
        let rows = rows();
        let mut times = BTreeMap::new();
        for row in rows.iter().filter(|row| row.key.is_some()) {
            *times.entry(&row.value).or_insert(0) += 1;
        }
        let delayed = times.keys().filter(|v| serde_json::from_str::<Flight>(v).is_ok_and(|f| f.delay > 60)).count();
        let malformed = rows.iter().filter(|row| row.key.is_none()).count();
        assert_eq!((times.len(), delayed, malformed), (FLIGHTS, DELAYED, MALFORMED));
        assert_eq!(times.values().filter(|n| **n == 2).count(), REPEATED);
        assert_eq!(rows.len(), FLIGHTS + REPEATED + MALFORMED);
    }

    #[test]
    fn three_fields_take_different_flights_for_one() {
        let flights: Vec<Flight> = serde_json::from_str(FLIGHTS_JSON).unwrap();
        let mut three: Vec<_> = flights.iter().map(|f| (&f.date, &f.origin, &f.destination)).collect();
        three.sort();
        three.dedup();
        assert_eq!(flights.len() - three.len(), 2);
    }

    #[test]
    fn the_same_feed_comes_each_time() {
        assert_eq!(rows(), rows());
    }

    #[test]
    fn every_row_has_a_line_with_its_key_and_data() {
        for (number, row) in rows().iter().enumerate() {
            let line = row.to_cloud_event(number);
            assert!(!line.contains('\n'));
            let event: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(event["partitionkey"].as_str(), row.key.as_deref());
            let data = event["data"].as_str().map_or_else(|| event["data"].to_string(), ToOwned::to_owned);
            assert_eq!(data, row.value);
        }
    }
}
