//! Tells the customer how the order went on. It reads two topics, so it takes the event as it is and looks at its type.

use millrace_sdk::prelude::*;
use orders_events::{CustomerNotified, PaymentDeclined, ShipmentArranged};

fn handle(event: Event, cx: &mut Context) -> Result<(), Failure> {
    let Event { ty, data, .. } = event;
    let notified = match ty.as_str() {
        "shipment.arranged" => {
            let ShipmentArranged { order, customer, days } = data.json()?;
            let text = match days {
                1 => format!("Your order {order} arrives tomorrow."),
                days => format!("Your order {order} arrives in {days} days."),
            };
            CustomerNotified { order, customer, text }
        }
        "payment.declined" => {
            let PaymentDeclined { order, customer, reason, .. } = data.json()?;
            let text = format!("We had to cancel your order {order}: {reason}.");
            CustomerNotified { order, customer, text }
        }
        other => return Err(Failure::invalid(format!("nothing to tell a customer about `{other}`"))),
    };
    cx.emit("notifications", Emission::json("customer.notified", &notified)?.subject(notified.order))?;
    Ok(())
}

millrace_sdk::handler!(handle);

#[cfg(test)]
mod tests {
    use millrace_sdk::testing::{Invocation, event};

    use super::*;

    #[track_caller]
    fn check(ty: &str, data: &millrace_sdk::serde_json::Value, text: &str) {
        let invocation = Invocation::new(event(ty, data)).grants(["notifications"]);
        let completion = invocation.run(handle).expect_completed();
        let [notified] = &completion.emitted[..] else { panic!("one notification") };
        assert_eq!((&*notified.topic, &*notified.event.ty), ("notifications", "customer.notified"));
        assert_eq!(notified.event.data_json::<CustomerNotified>().unwrap().text, text);
    }

    #[test]
    fn customers_are_told_in_words() {
        let shipment = |days: u32| json!({"order": "o-1", "customer": "c-1", "days": days});
        check("shipment.arranged", &shipment(1), "Your order o-1 arrives tomorrow.");
        check("shipment.arranged", &shipment(3), "Your order o-1 arrives in 3 days.");
        let declined = json!({"order": "o-1", "customer": "c-1", "items": [], "reason": "insufficient funds"});
        check("payment.declined", &declined, "We had to cancel your order o-1: insufficient funds.");
    }

    #[test]
    fn other_events_are_invalid() {
        let outcome = Invocation::new(event("stock.released", &())).run(handle).outcome;
        assert_eq!(outcome, Err(Failure::invalid("nothing to tell a customer about `stock.released`")));
    }
}
