//! Arranges the shipment of an order that is paid for.

use millrace_sdk::prelude::*;
use orders_events::{PaymentCharged, ShipmentArranged};

/// Days until a parcel arrives, by zone.
const DAYS: [u32; 5] = [1, 1, 2, 3, 5];

fn handle(charged: Event<PaymentCharged>, cx: &mut Context) -> Result<(), Failure> {
    let PaymentCharged { order, customer, zone, .. } = charged.data;
    // A bug for the example's sake: nobody thought of addresses beyond the last zone. Indexing panics, the attempt ends,
    // and after the retries of the manifest the event is a dead letter.
    let days = DAYS[zone];
    let arranged = ShipmentArranged { order, customer, days };
    cx.emit("shipping", Emission::json("shipment.arranged", &arranged)?.subject(arranged.order))?;
    Ok(())
}

millrace_sdk::handler!(handle);

#[cfg(test)]
mod tests {
    use millrace_sdk::testing::{Completion, Invocation, event};

    use super::*;

    fn run(zone: usize) -> Completion {
        let [order, customer, amount, charge] = ["o-1", "c-1", "12.05 EUR", "k-1"].map(String::from);
        let charged = PaymentCharged { order, customer, zone, amount, charge };
        Invocation::new(event("payment.charged", &charged)).grants(["shipping"]).run(handle)
    }

    #[test]
    fn a_shipment_takes_as_long_as_its_zone_says() {
        let completion = run(4).expect_completed();
        let [arranged] = &completion.emitted[..] else { panic!("one shipment") };
        assert_eq!((&*arranged.topic, &*arranged.event.ty), ("shipping", "shipment.arranged"));
        assert_eq!(arranged.event.data_json::<ShipmentArranged>().unwrap().days, 5);
    }

    #[test]
    #[should_panic(expected = "index out of bounds")]
    fn an_unknown_zone_is_a_bug() {
        run(9);
    }
}
