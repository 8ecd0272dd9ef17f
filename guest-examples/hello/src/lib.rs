//! Greets whoever arrives.

use millrace_sdk::prelude::*;

fn handle(visitor: Event<String>, cx: &mut Context) -> Result<(), Failure> {
    let name = visitor.data;
    let greeting = format!("Hello, {name}!");
    log::info!("{greeting}");
    cx.emit("greetings", Emission::json("greeting", &greeting)?)?;
    Ok(())
}

millrace_sdk::handler!(handle);

#[cfg(test)]
mod tests {
    use millrace_sdk::prelude::*;
    use millrace_sdk::testing::{self, Invocation};

    use super::handle;

    #[test]
    fn a_visitor_is_greeted_by_name() {
        let visitor = testing::cloud_event(include_str!("../event.json")).expect("a CloudEvent");
        let completion = Invocation::new(visitor).run(handle).expect_completed();
        let [greeting] = &completion.emitted[..] else { panic!("one greeting") };
        assert_eq!(greeting.topic, "greetings");
        assert_eq!(greeting.event.data_json(), Ok("Hello, Ada!"));
    }

    #[test]
    fn a_visitor_without_a_name_is_invalid() {
        let visitor = testing::event("visitor.arrived", &json!({"age": 36}));
        assert!(matches!(Invocation::new(visitor).run(handle).outcome, Err(Failure::Invalid(_))));
    }
}
