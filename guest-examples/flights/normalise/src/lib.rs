//! Turns raw rows into flights, and refuses malformed ones.

use millrace_sdk::prelude::*;

/// A row as the feed sends it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Such as `2001/01/01 00:47`, without a time zone.
    date: String,
    /// In minutes; negative is early.
    delay: i32,
    /// In miles.
    distance: u32,
    origin: String,
    destination: String,
}

/// What others get to read.
#[derive(Serialize)]
struct Flight<'a> {
    origin: &'a str,
    destination: &'a str,
    delay: i32,
    distance: u32,
}

fn handle(row: Event<Row>, cx: &mut Context) -> Result<(), Failure> {
    let Row { date, delay, distance, origin, destination } = row.data;
    check_airport("origin", &origin)?;
    check_airport("destination", &destination)?;
    let flight = Flight { origin: &origin, destination: &destination, delay, distance };
    let emission = Emission::json("flight.recorded", &flight)?
        .subject(format!("{origin}-{destination}"))
        .time(instant(&date)?)
        .key(origin);
    cx.emit("flights", emission)?;
    Ok(())
}

millrace_sdk::handler!(handle);

/// Airports have codes of three capital letters (IATA).
fn check_airport(field: &str, code: &str) -> Result<(), Failure> {
    if code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(Failure::invalid(format!("{field}: `{code}` is not the code of an airport")))
}

/// The feed names no time zone; taken as UTC.
fn instant(date: &str) -> Result<Timestamp, Failure> {
    let (day, time) = date.split_once(' ').invalid(format_args!("date: `{date}` has no time"))?;
    format!("{}T{time}:00Z", day.replace('/', "-")).parse().invalid("date")
}

#[cfg(test)]
mod tests {
    use millrace_sdk::serde_json::Value;
    use millrace_sdk::testing::{Completion, Invocation, event};

    use super::*;

    fn row() -> Value {
        json!({"date": "2001/01/01 00:47", "delay": 66, "distance": 1750, "origin": "DTW", "destination": "LAS"})
    }

    fn run(data: &Value) -> Completion {
        Invocation::new(event("flight.row", data)).grants(["flights"]).run(handle)
    }

    #[test]
    fn a_row_becomes_a_flight() {
        let completion = run(&row()).expect_completed();
        let [flight] = &completion.emitted[..] else { panic!("one flight") };
        assert_eq!(flight.topic, "flights");
        assert_eq!(flight.key.as_deref(), Some(&b"DTW"[..]));
        assert_eq!(flight.event.ty, "flight.recorded");
        assert_eq!(flight.event.subject.as_deref(), Some("DTW-LAS"));
        assert_eq!(flight.event.time, Some("2001-01-01T00:47:00Z".parse().unwrap()));
        let expected = json!({"origin": "DTW", "destination": "LAS", "delay": 66, "distance": 1750});
        assert_eq!(flight.event.data_json(), Ok(expected));
    }

    #[track_caller]
    fn check(field: &str, value: Option<Value>, reason: &str) {
        let mut row = row();
        match value {
            Some(value) => row[field] = value,
            None => drop(row.as_object_mut().unwrap().remove(field)),
        }
        let failure = run(&row).outcome.unwrap_err();
        assert!(matches!(&failure, Failure::Invalid(m) if m.contains(reason)), "{row} gave {failure}");
    }

    #[test]
    fn malformed_rows_are_refused_by_the_field() {
        check("delay", None, "missing field `delay`");
        check("delay", Some("66".into()), "invalid type: string \"66\"");
        check("delay", Some(66.5.into()), "floating point `66.5`");
        check("distance", Some((-1).into()), "`-1`");
        check("date", Some("2001/01/01".into()), "date: `2001/01/01` has no time");
        check("date", Some("2001/02/29 00:47".into()), "date: `2001-02-29T00:47:00Z` is not");
        check("origin", Some("dtw".into()), "origin: `dtw` is not the code of an airport");
        check("destination", Some("".into()), "destination: `` is not");
        check("gate", Some("A1".into()), "unknown field `gate`");
    }

    #[test]
    fn what_is_no_row_at_all_is_refused() {
        for data in [Some("DTW,LAS,66"), Some(""), Some("{"), Some("null"), Some("[]"), None] {
            let mut event = event("flight.row", &());
            event.data = data.map(|text| text.as_bytes().to_vec()).into();
            let outcome = Invocation::new(event).run(handle).outcome;
            assert!(matches!(outcome, Err(Failure::Invalid(_))), "{data:?}");
        }
    }

    #[test]
    fn of_the_sample_exactly_the_malformed_rows_are_refused() {
        for row in flights_sample::rows() {
            let mut event = event("flight.row", &());
            event.data = row.value.as_bytes().to_vec().into();
            let outcome = Invocation::new(event).run(handle).outcome;
            assert_eq!(outcome.is_ok(), row.key.is_some(), "{} gave {outcome:?}", row.value);
        }
    }
}
