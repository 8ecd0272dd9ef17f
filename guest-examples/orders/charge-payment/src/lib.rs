//! Charges the card for an order whose stock is reserved.

use millrace_sdk::prelude::*;
use orders_events::{Order, PaymentCharged, PaymentDeclined};

fn handle(reserved: Event<Order>, cx: &mut Context) -> Result<(), Failure> {
    let currency: String = cx.config("currency")?;
    let delivery = cx.delivery();
    let answer = charge(&reserved.data.card, delivery.idempotency_key(), delivery.attempt())
        .transient(format_args!("order {}", reserved.data.order))?;
    let Order { order, customer, items, total_cents, zone, .. } = reserved.data;
    let emission = match answer {
        Answer::Charged { charge } => {
            let amount = format!("{}.{:02} {currency}", total_cents / 100, total_cents % 100);
            let charged = PaymentCharged { order, customer, zone, amount, charge };
            Emission::json("payment.charged", &charged)?.subject(charged.order)
        }
        Answer::Declined { reason } => {
            let declined = PaymentDeclined { order, customer, items, reason };
            Emission::json("payment.declined", &declined)?.subject(declined.order)
        }
    };
    cx.emit("payments", emission)?;
    Ok(())
}

millrace_sdk::handler!(handle);

/// What the gateway says.
enum Answer {
    Charged { charge: String },
    Declined { reason: String },
}

/// Stands for the payment gateway. It would recognise a repeated call by the idempotency key, and charge once. It has no
/// money on cards that end in `declined`, and is out of order at the first two attempts for those that end in `busy`.
fn charge(card: &str, idempotency_key: String, attempt: u32) -> Result<Answer, &'static str> {
    match card.rsplit('-').next() {
        Some("busy") if attempt < 3 => Err("the payment gateway does not answer"),
        Some("declined") => Ok(Answer::Declined { reason: "insufficient funds".to_owned() }),
        _ => Ok(Answer::Charged { charge: idempotency_key }),
    }
}

#[cfg(test)]
mod tests {
    use millrace_sdk::testing::{Emitted, Invocation, event};

    use super::*;

    fn invocation(card: &str) -> Invocation {
        let order = Order {
            order: "o-1".into(),
            customer: "c-1".into(),
            items: vec![],
            total_cents: 1205,
            card: card.into(),
            zone: 2,
        };
        Invocation::new(event("stock.reserved", &order)).config("currency", "EUR").grants(["payments"])
    }

    fn emitted(invocation: &Invocation) -> Emitted {
        let completion = invocation.run(handle).expect_completed();
        let [emitted] = &completion.emitted[..] else { panic!("one event") };
        assert_eq!((&*emitted.topic, emitted.event.subject.as_deref()), ("payments", Some("o-1")));
        emitted.clone()
    }

    #[test]
    fn a_card_is_charged_under_the_idempotency_key() {
        let charged = emitted(&invocation("card-1").idempotency_key("k-1")).event;
        assert_eq!(charged.ty, "payment.charged");
        let charged: PaymentCharged = charged.data_json().unwrap();
        assert_eq!((&*charged.charge, &*charged.amount, charged.zone), ("k-1", "12.05 EUR", 2));
    }

    #[test]
    fn a_declined_card_is_an_event_and_no_failure() {
        let declined = emitted(&invocation("card-1-declined")).event;
        assert_eq!(declined.ty, "payment.declined");
        assert_eq!(declined.data_json::<PaymentDeclined>().unwrap().reason, "insufficient funds");
    }

    #[test]
    fn a_busy_gateway_answers_at_the_third_attempt() {
        let busy = invocation("card-1-busy");
        for attempt in [1, 2] {
            let outcome = busy.clone().attempt(attempt).run(handle).outcome;
            assert_eq!(outcome, Err(Failure::transient("order o-1: the payment gateway does not answer")));
        }
        assert_eq!(emitted(&busy.attempt(3)).event.ty, "payment.charged");
    }
}
