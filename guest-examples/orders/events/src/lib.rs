//! The payloads that the functions of the shop exchange. Each carries all that its readers need, so that nobody has to ask
//! the sender.

use serde::{Deserialize, Serialize};

/// One position of an order.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Item {
    /// What.
    pub sku: String,
    /// How many pieces.
    pub quantity: u32,
}

/// `order.placed` on topic `orders`, and with it `stock.reserved` on topic `stock`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Order {
    /// The order's number.
    pub order: String,
    /// Who ordered; the ordering key of all events of the shop.
    pub customer: String,
    /// What was ordered.
    pub items: Vec<Item>,
    /// What it costs, in cents.
    pub total_cents: u64,
    /// The token of the card to charge.
    pub card: String,
    /// The delivery zone of the address.
    pub zone: usize,
}

/// `payment.charged` on topic `payments`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PaymentCharged {
    /// The order's number.
    pub order: String,
    /// Who ordered.
    pub customer: String,
    /// The delivery zone of the address.
    pub zone: usize,
    /// What was charged, such as `12.50 EUR`.
    pub amount: String,
    /// What the gateway knows the charge by.
    pub charge: String,
}

/// `payment.declined` on topic `payments`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PaymentDeclined {
    /// The order's number.
    pub order: String,
    /// Who ordered.
    pub customer: String,
    /// What had been reserved.
    pub items: Vec<Item>,
    /// What the gateway says.
    pub reason: String,
}

/// `stock.released` on topic `stock`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct StockReleased {
    /// The order's number.
    pub order: String,
    /// What is free again.
    pub items: Vec<Item>,
}

/// `shipment.arranged` on topic `shipping`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ShipmentArranged {
    /// The order's number.
    pub order: String,
    /// Who ordered.
    pub customer: String,
    /// Days until it arrives.
    pub days: u32,
}

/// `customer.rewarded` on topic `rewards`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct CustomerRewarded {
    /// Who ordered so often.
    pub customer: String,
    /// How many orders were paid for so far.
    pub orders: u64,
}

/// `customer.notified` on topic `notifications`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct CustomerNotified {
    /// The order's number.
    pub order: String,
    /// Who was told.
    pub customer: String,
    /// What the customer reads.
    pub text: String,
}
