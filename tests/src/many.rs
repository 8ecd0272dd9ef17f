//! A hundred functions in one process on Kafka, and what they cost it.

use std::path::Path;

use serde_json::json;

use crate::process::{Api, Dev, application};

/// How many there are.
pub const FUNCTIONS: u32 = 100;
/// Events that each of them handles.
pub const EVENTS: u64 = 20;
/// Most threads of a process for each function, on one broker.
pub const THREADS_MAX: f64 = 12.0;
/// Most memory of a process for each function, in MiB.
pub const MEMORY_MAX_MIB: f64 = 8.0;

/// Writes an application whose functions all read `in` and answer in `out`.
pub fn write(directory: &Path) {
    let function = |number| {
        format!(
            "[functions.f{number}]\ncomponent = 'guest.wasm'\ntopics = ['in']\ngrants = {{ publish = ['out'], state = true }}\n"
        )
    };
    let functions: String = (0..FUNCTIONS).map(function).collect();
    application(
        directory,
        &format!("application = 'many'\n[topics.in]\npartitions = 2\n[topics.out]\npartitions = 2\n{functions}"),
    );
}

/// Has each function handle its events.
///
/// # Panics
/// If one does not.
pub async fn handle(instance: &Dev) {
    let api = Api::default();
    let event = |number| {
        let key = format!("k-{number}");
        let event = json!({
            "specversion": "1.0", "id": format!("e-{number}"), "source": "/test", "type": "E", "subject": "out",
            "partitionkey": key, "data": key,
        });
        event.to_string()
    };
    let events: Vec<String> = (0..EVENTS).map(event).collect();
    assert_eq!(api.publish(&instance.url, "in", &events).await.map(|status| status.as_u16()), Some(202));
    let status = api.settled(&instance.url).await;
    let functions = status["functions"].as_array().expect("functions");
    assert_eq!(functions.len(), FUNCTIONS as usize);
    for function in functions {
        assert_eq!(function["totals"]["completed"], EVENTS, "{function:#}");
    }
}
