//! Reserves stock for an order that was placed.

use millrace_sdk::prelude::*;
use orders_events::Order;

fn handle(placed: Event<Order>, cx: &mut Context) -> Result<(), Failure> {
    let order = placed.data;
    if order.items.is_empty() {
        return Err(Failure::invalid(format!("order {} has no items", order.order)));
    }
    let max: u32 = cx.config("max-quantity")?;
    if let Some(item) = order.items.iter().find(|item| item.quantity > max) {
        let message = format!("order {}: {} pieces of {} are more than {max}", order.order, item.quantity, item.sku);
        return Err(Failure::rejected(message));
    }
    log::debug!("reserving {} positions for {}", order.items.len(), order.order);
    cx.emit("stock", Emission::json("stock.reserved", &order)?.subject(order.order))?;
    Ok(())
}

millrace_sdk::handler!(handle);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millrace_sdk::serde_json::{self, Value};
    use millrace_sdk::testing::{Completion, Invocation, cloud_event};

    use super::*;

    fn run(placed: Event) -> Completion {
        Invocation::new(placed).config("max-quantity", "20").grants(["stock"]).run(handle)
    }

    fn sample() -> Event {
        cloud_event(include_str!("../../order.json")).unwrap()
    }

    /// The sample with one attribute of its data changed.
    fn with(name: &str, value: Value) -> Event {
        let mut event = sample();
        let mut data: Value = event.data_json().unwrap();
        data[name] = value;
        event.data = data.to_string().into_bytes().into();
        event
    }

    #[test]
    fn stock_is_reserved_under_the_key_of_the_order() {
        let completion = run(sample()).expect_completed();
        let [reserved] = &completion.emitted[..] else { panic!("one reservation") };
        assert_eq!((&*reserved.topic, &*reserved.event.ty), ("stock", "stock.reserved"));
        assert_eq!(reserved.event.subject.as_deref(), Some("o-1"));
        assert_eq!(reserved.key.as_deref(), Some(&b"c-1"[..]));
        assert_eq!(reserved.event.data_json::<Order>(), sample().data_json());
    }

    #[test]
    fn orders_that_make_no_sense_are_invalid() {
        let bad_quantity = json!([{"sku": "tea", "quantity": -1}]);
        for event in [with("items", json!([])), with("items", bad_quantity), with("customer", Value::Null)] {
            assert!(matches!(run(event).outcome, Err(Failure::Invalid(_))));
        }
    }

    #[test]
    fn more_than_the_shop_sells_at_once_is_rejected() {
        let outcome = run(with("items", json!([{"sku": "tea", "quantity": 21}]))).outcome;
        assert_eq!(outcome, Err(Failure::rejected("order o-1: 21 pieces of tea are more than 20")));
        run(with("items", json!([{"sku": "tea", "quantity": 20}]))).expect_completed();
    }

    #[test]
    fn without_its_configuration_the_function_waits() {
        let outcome = Invocation::new(sample()).run(handle).outcome;
        assert!(matches!(outcome, Err(Failure::Transient { .. })));
    }

    #[test]
    fn the_sample_orders_end_as_expected() {
        let expected: Value = serde_json::from_str(include_str!("../../expected.json")).unwrap();
        let mut counts = BTreeMap::from([("completed", 0), ("invalid", 0), ("rejected", 0)]);
        let mut seen = std::collections::BTreeSet::new();
        for line in include_str!("../../orders.ndjson").lines() {
            let event = cloud_event(line).unwrap();
            if event.ty != "order.placed" || !seen.insert(event.subject.clone()) {
                continue;
            }
            let outcome = match run(event).outcome {
                Ok(()) => "completed",
                Err(Failure::Invalid(_)) => "invalid",
                Err(Failure::Rejected(_)) => "rejected",
                Err(Failure::Transient { message, .. }) => panic!("{message}"),
            };
            *counts.entry(outcome).or_default() += 1;
        }
        let reserve = &expected["functions"]["reserve-stock"];
        assert_eq!(reserve["completed"], counts["completed"]);
        assert_eq!(reserve["dead-lettered"], json!({"invalid": counts["invalid"], "rejected": counts["rejected"]}));
    }
}
