//! Tells of flights that are late, and the how many-th of its origin each is, which is this function's state. The manifest's filter
//! leaves only those that are more than an hour late.

use millrace_sdk::prelude::*;

/// What this function reads of a flight.
#[derive(Deserialize)]
struct Flight {
    origin: String,
    destination: String,
    delay: i32,
}

fn handle(flight: Event<Flight>, cx: &mut Context) -> Result<(), Failure> {
    let Event { subject, time, data: Flight { origin, destination, delay }, .. } = flight;
    let late = cx.state().get_json(&origin)?.unwrap_or(0) + 1;
    cx.state().set_json(&origin, &late)?;
    let text = format!("The flight from {origin} to {destination} is {delay} minutes late.");
    let alert = json!({"origin": origin, "destination": destination, "delay": delay, "late": late, "text": text});
    let mut emission = Emission::json("flight.delayed", &alert)?.key(origin);
    if let Some(subject) = subject {
        emission = emission.subject(subject);
    }
    if let Some(time) = time {
        emission = emission.time(time);
    }
    cx.emit("alerts", emission)?;
    Ok(())
}

millrace_sdk::handler!(handle);

#[cfg(test)]
mod tests {
    use millrace_sdk::testing::{Invocation, event};

    use super::*;

    #[test]
    fn an_alert_keeps_what_the_flight_is_about() {
        let mut flight = event("flight.recorded", &json!({"origin": "DTW", "destination": "LAS", "delay": 66}));
        flight.subject = Some("DTW-LAS".into());
        flight.time = Some(Timestamp::EPOCH);
        let completion = Invocation::new(flight).state("DTW", "6").grants(["alerts"]).run(handle).expect_completed();
        let [alert] = &completion.emitted[..] else { panic!("one alert") };
        assert_eq!((&*alert.topic, alert.key.as_deref()), ("alerts", Some(&b"DTW"[..])));
        assert_eq!((&*alert.event.ty, alert.event.subject.as_deref()), ("flight.delayed", Some("DTW-LAS")));
        assert_eq!(alert.event.time, Some(Timestamp::EPOCH));
        let data: millrace_sdk::serde_json::Value = alert.event.data_json().unwrap();
        assert_eq!(data["text"], "The flight from DTW to LAS is 66 minutes late.");
        assert_eq!((data["late"].as_u64(), completion.state_json("DTW")), (Some(7), Some(7)));
    }
}
