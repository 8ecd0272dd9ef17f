//! Releases the stock of an order that was not paid for: it makes up for what `reserve-stock` did.

use millrace_sdk::prelude::*;
use orders_events::{PaymentDeclined, StockReleased};

fn handle(declined: Event<PaymentDeclined>, cx: &mut Context) -> Result<(), Failure> {
    let PaymentDeclined { order, items, reason, .. } = declined.data;
    log::info!("releasing the stock of {order}: {reason}");
    let released = StockReleased { order, items };
    cx.emit("stock", Emission::json("stock.released", &released)?.subject(released.order))?;
    Ok(())
}

millrace_sdk::handler!(handle);

#[cfg(test)]
mod tests {
    use millrace_sdk::testing::{Invocation, event};
    use orders_events::Item;

    use super::*;

    #[test]
    fn what_was_reserved_is_released() {
        let items = vec![Item { sku: "tea".into(), quantity: 2 }];
        let [order, customer, reason] = ["o-1", "c-1", "insufficient funds"].map(String::from);
        let declined = PaymentDeclined { order, customer, items: items.clone(), reason };
        let invocation = Invocation::new(event("payment.declined", &declined)).grants(["stock"]);
        let completion = invocation.run(handle).expect_completed();
        let [released] = &completion.emitted[..] else { panic!("one release") };
        assert_eq!((&*released.topic, &*released.event.ty), ("stock", "stock.released"));
        assert_eq!(released.event.data_json(), Ok(StockReleased { order: "o-1".into(), items }));
    }
}
