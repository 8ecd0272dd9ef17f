//! Rewards a customer at each fifth paid order. How many there were so far is this function's state, under the customer's name.

use millrace_sdk::prelude::*;
use orders_events::{CustomerRewarded, PaymentCharged};

fn handle(charged: Event<PaymentCharged>, cx: &mut Context) -> Result<(), Failure> {
    let every: u64 = cx.config("every")?;
    let customer = charged.data.customer;
    let orders = cx.state().get_json(&customer)?.unwrap_or(0) + 1;
    cx.state().set_json(&customer, &orders)?;
    if orders % every == 0 {
        let rewarded = CustomerRewarded { customer, orders };
        cx.emit("rewards", Emission::json("customer.rewarded", &rewarded)?.subject(rewarded.customer))?;
    }
    Ok(())
}

millrace_sdk::handler!(handle);

#[cfg(test)]
mod tests {
    use millrace_sdk::testing::{Invocation, event};

    use super::*;

    fn invocation() -> Invocation {
        let charged = json!({"order": "o-9", "customer": "c-1", "zone": 1, "amount": "5.95 EUR", "charge": "x"});
        Invocation::new(event("payment.charged", &charged)).config("every", "5").grants(["rewards"])
    }

    #[test]
    fn orders_are_counted_for_each_customer() {
        let completion = invocation().state("c-2", "4").run(handle).expect_completed();
        assert_eq!(completion.state_json("c-1"), Some(1));
        assert_eq!(completion.state_json("c-2"), Some(4));
        assert!(completion.emitted.is_empty());
    }

    #[test]
    fn the_fifth_order_is_rewarded() {
        let completion = invocation().state("c-1", "4").run(handle).expect_completed();
        assert_eq!(completion.state_json("c-1"), Some(5));
        let [rewarded] = &completion.emitted[..] else { panic!("one reward") };
        let expected = CustomerRewarded { customer: "c-1".into(), orders: 5 };
        assert_eq!(rewarded.event.data_json(), Ok(expected));
    }
}
