//! Greets whoever arrives.

use millrace_sdk::prelude::*;

/// The data of an event on topic `visitors`.
#[derive(Deserialize)]
struct Visitor {
    name: String,
}

/// The data of an event on topic `greetings`.
#[derive(Serialize)]
struct Greeting {
    text: String,
}

fn handle(visitor: Event<Visitor>, cx: &mut Context) -> Result<(), Failure> {
    let name = visitor.data.name;
    if name.is_empty() {
        return Err(Failure::invalid("the visitor has no name"));
    }
    let word: String = cx.config("greeting")?;
    let text = format!("{word}, {name}!");
    log::info!("{text}");
    cx.emit("greetings", Emission::json("greeting", &Greeting { text })?)?;
    Ok(())
}

millrace_sdk::handler!(handle);

#[cfg(test)]
mod tests {
    use millrace_sdk::testing::{self, Invocation};

    use super::*;

    #[test]
    fn a_visitor_is_greeted_by_name() {
        let visitor = testing::cloud_event(include_str!("../event.json")).unwrap();
        let invocation = Invocation::new(visitor).config("greeting", "Hello").grants(["greetings"]);
        let completion = invocation.run(handle).expect_completed();
        assert_eq!(completion.emitted[0].topic, "greetings");
        assert_eq!(completion.emitted[0].event.data.text(), Ok(r#"{"text":"Hello, Ada!"}"#));
    }

    #[test]
    fn a_visitor_without_a_name_is_invalid() {
        let visitor = testing::event("visitor.arrived", &json!({"name": ""}));
        let outcome = Invocation::new(visitor).run(handle).outcome;
        assert_eq!(outcome, Err(Failure::invalid("the visitor has no name")));
    }
}
