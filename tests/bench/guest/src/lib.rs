//! Bills an order: a handler that does little but parse and write JSON.

use millrace_sdk::prelude::*;

#[derive(Deserialize)]
struct Order {
    order: String,
    customer: String,
    items: Vec<Item>,
    card: String,
    zone: u8,
}

#[derive(Deserialize, Serialize)]
struct Item {
    sku: String,
    quantity: u32,
    price_cents: u64,
}

#[derive(Serialize)]
struct Bill {
    order: String,
    customer: String,
    items: Vec<Item>,
    total_cents: u64,
    card: String,
}

fn handle(order: Event<Order>, cx: &mut Context) -> Result<(), Failure> {
    let Order { order, customer, items, card, zone } = order.data;
    let shipping_cents = 250 * u64::from(zone);
    let total_cents =
        shipping_cents + items.iter().map(|item| u64::from(item.quantity) * item.price_cents).sum::<u64>();
    let bill = Bill { order, customer, items, total_cents, card };
    cx.emit("out", Emission::json("order.billed", &bill)?)?;
    Ok(())
}

millrace_sdk::handler!(handle);
