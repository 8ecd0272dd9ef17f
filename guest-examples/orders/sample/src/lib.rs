//! The shop's sample orders, and what must become of them. The same each time.
//!
//! What is expected is counted from what each order was made to be. None of the functions has a part in it, so that it can
//! prove them wrong.

mod random;

use std::collections::BTreeMap;

use random::Random;
use serde_json::{Value, json};

const CUSTOMERS: usize = 200;
/// What becomes of the orders, with how many of each; all that is left is delivered.
const FATES: [(Fate, usize); 5] =
    [(Fate::Declined, 135), (Fate::Busy, 81), (Fate::Rejected, 54), (Fate::Malformed, 30), (Fate::Undeliverable, 12)];
const ORDERS: usize = 2_700;
/// Each of a customer's so many paid orders is rewarded.
const REWARDED_EVERY: usize = 5;
/// Orders that the web shop sends twice, each half the times as the same event and as a new one.
const REPEATED: usize = 150;
/// Events on the same topic that are no orders.
const COMMENTS: usize = 150;
/// Name and price in cents.
const GOODS: [(&str, usize); 5] = [("tea", 595), ("coffee", 795), ("cup", 600), ("pot", 2450), ("biscuits", 349)];

/// What an order was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Arrives.
    Delivered,
    /// Arrives, after the payment gateway was busy twice.
    Busy,
    /// The card is declined: the stock is released, and the customer told.
    Declined,
    /// More pieces than the shop sells at once.
    Rejected,
    /// Not an order.
    Malformed,
    /// Paid for, and then its zone makes `arrange-shipping` panic.
    Undeliverable,
}

/// The sample.
#[derive(Clone, Debug)]
pub struct Sample {
    events: Vec<Value>,
    fates: Vec<Fate>,
    /// Who placed each order.
    customers: Vec<String>,
}

/// Makes the sample.
#[must_use]
pub fn sample() -> Sample {
    let mut random = Random::new(42);
    let mut fates: Vec<Fate> = FATES.iter().flat_map(|(fate, count)| vec![*fate; *count]).collect();
    fates.resize(ORDERS, Fate::Delivered);
    random.shuffle(&mut fates);

    let mut placed: Vec<(usize, Value)> = Vec::new();
    for (number, fate) in fates.iter().enumerate() {
        placed.push((number, order(number, *fate, &mut random)));
    }
    let customer = |(_, event): &(usize, Value)| event["partitionkey"].as_str().unwrap_or_default().to_owned();
    let customers = placed.iter().map(customer).collect();
    for (nth, number) in repeated(&fates, &mut random).into_iter().enumerate() {
        let mut again = placed[number].1.clone();
        if nth % 2 == 1 {
            again["id"] = format!("order-placed-{}-again", number + 1).into();
        }
        placed.push((number + random.below(40), again));
    }
    for number in 0..COMMENTS {
        placed.push((random.below(ORDERS), comment(number, &mut random)));
    }
    // A stable sort: at the same place an order comes before its repetition.
    placed.sort_by_key(|(at, _)| *at);
    let mut events: Vec<Value> = placed.into_iter().map(|(_, event)| event).collect();
    for (second, event) in events.iter_mut().enumerate() {
        event["time"] = time(second).into();
    }
    Sample { events, fates, customers }
}

/// Orders that complete at the first function can be recognised when they come again.
fn repeated(fates: &[Fate], random: &mut Random) -> Vec<usize> {
    let completes = |fate: Fate| !matches!(fate, Fate::Malformed | Fate::Rejected);
    let mut numbers: Vec<usize> = (0..ORDERS).filter(|number| completes(fates[*number])).collect();
    random.shuffle(&mut numbers);
    numbers.truncate(REPEATED);
    numbers
}

fn order(number: usize, fate: Fate, random: &mut Random) -> Value {
    let id = format!("o-{}", number + 1);
    let customer = format!("c-{}", random.below(CUSTOMERS) + 1);
    let mut total_cents = 0;
    let mut items = Vec::new();
    for _ in 0..=random.below(3) {
        let (sku, cents) = GOODS[random.below(GOODS.len())];
        let quantity = if fate == Fate::Rejected { 21 + random.below(80) } else { 1 + random.below(4) };
        total_cents += cents * quantity;
        items.push(json!({"sku": sku, "quantity": quantity}));
    }
    let card = match fate {
        Fate::Busy => format!("card-{customer}-busy"),
        Fate::Declined => format!("card-{customer}-declined"),
        Fate::Delivered | Fate::Rejected | Fate::Malformed | Fate::Undeliverable => format!("card-{customer}"),
    };
    let zone = if fate == Fate::Undeliverable { 9 } else { random.below(5) };
    let mut event = event("order.placed", &format!("order-placed-{}", number + 1), &customer);
    event["subject"] = id.as_str().into();
    event["data"] = json!({
        "order": id, "customer": customer, "items": items, "total_cents": total_cents, "card": card, "zone": zone,
    });
    if fate == Fate::Malformed {
        spoil(&mut event, number);
    }
    event
}

/// Makes an order malformed in one of four ways.
fn spoil(event: &mut Value, number: usize) {
    match number % 4 {
        0 => event["data"]["customer"] = Value::Null,
        1 => event["data"]["items"] = json!([]),
        2 => event["data"]["items"][0]["quantity"] = (-1).into(),
        _ => {
            event["datacontenttype"] = "text/plain".into();
            event["data"] = "two packets of tea, please".into();
        }
    }
}

fn comment(number: usize, random: &mut Random) -> Value {
    let customer = format!("c-{}", random.below(CUSTOMERS) + 1);
    let mut event = event("order.commented", &format!("order-commented-{}", number + 1), &customer);
    event["data"] = json!({"customer": customer, "text": "Please ring twice."});
    event
}

fn event(ty: &str, id: &str, customer: &str) -> Value {
    json!({
        "specversion": "1.0",
        "id": id,
        "source": "/shop/web",
        "type": ty,
        "partitionkey": customer,
        "datacontenttype": "application/json",
    })
}

/// The shop opens at eight, and sells one order a second.
fn time(second: usize) -> String {
    format!("2026-01-05T{:02}:{:02}:{:02}Z", 8 + second / 3600, second / 60 % 60, second % 60)
}

impl Sample {
    /// One CloudEvent a line.
    #[must_use]
    pub fn lines(&self) -> String {
        self.events.iter().map(|event| format!("{event}\n")).collect()
    }

    fn count(&self, fates: &[Fate]) -> usize {
        self.fates.iter().filter(|fate| fates.contains(fate)).count()
    }

    /// The numbers of the orders with these fates, as the subjects of events say them.
    fn orders(&self, fates: &[Fate]) -> String {
        let numbered = self.fates.iter().enumerate().filter(|(_, fate)| fates.contains(fate));
        numbered.map(|(number, _)| format!("o-{}", number + 1)).collect::<Vec<_>>().join(" ")
    }

    /// Who is rewarded for paid orders, each customer once for each reward.
    fn rewarded(&self) -> Vec<&str> {
        let mut paid: BTreeMap<&str, usize> = BTreeMap::new();
        for (customer, fate) in self.customers.iter().zip(&self.fates) {
            if matches!(fate, Fate::Delivered | Fate::Busy | Fate::Undeliverable) {
                *paid.entry(customer).or_default() += 1;
            }
        }
        paid.into_iter().flat_map(|(customer, orders)| vec![customer; orders / REWARDED_EVERY]).collect()
    }

    /// For each topic that functions emit to, and each type, the subjects of its events.
    fn subjects(&self) -> Value {
        use Fate::{Busy, Declined, Delivered, Undeliverable};
        let of = |fates: &[Fate]| self.orders(fates);
        json!({
            "stock": {
                "stock.reserved": of(&[Delivered, Busy, Undeliverable, Declined]),
                "stock.released": of(&[Declined]),
            },
            "payments": {
                "payment.charged": of(&[Delivered, Busy, Undeliverable]),
                "payment.declined": of(&[Declined]),
            },
            "shipping": {"shipment.arranged": of(&[Delivered, Busy])},
            "notifications": {"customer.notified": of(&[Delivered, Busy, Declined])},
            "rewards": {"customer.rewarded": self.rewarded().join(" ")},
        })
    }

    /// What must be there when all is settled: per topic the events by type, and their subjects where functions emit; per function
    /// the outcomes of what it read.
    #[must_use]
    pub fn expected(&self) -> String {
        let delivered = self.count(&[Fate::Delivered, Fate::Busy]);
        let [declined, undeliverable] = [Fate::Declined, Fate::Undeliverable].map(|fate| self.count(&[fate]));
        let [rejected, malformed] = [Fate::Rejected, Fate::Malformed].map(|fate| self.count(&[fate]));
        let charged = delivered + undeliverable;
        let reserved = charged + declined;
        let placed = self.fates.len() + REPEATED;
        let none = json!({});
        let expected = json!({
            "topics": {
                "orders": {"order.placed": placed, "order.commented": COMMENTS},
                "stock": {"stock.reserved": reserved, "stock.released": declined},
                "payments": {"payment.charged": charged, "payment.declined": declined},
                "shipping": {"shipment.arranged": delivered},
                "notifications": {"customer.notified": delivered + declined},
                "rewards": {"customer.rewarded": self.rewarded().len()},
            },
            "subjects": self.subjects(),
            "functions": {
                "reserve-stock": {
                    "completed": reserved, "filtered": COMMENTS, "duplicate": REPEATED,
                    "dead-lettered": {"invalid": malformed, "rejected": rejected},
                },
                "charge-payment": {
                    "completed": reserved, "filtered": declined, "duplicate": 0, "dead-lettered": none,
                },
                "arrange-shipping": {
                    "completed": delivered, "filtered": declined, "duplicate": 0,
                    "dead-lettered": {"unknown": undeliverable},
                },
                "reward-customer": {
                    "completed": charged, "filtered": declined, "duplicate": 0, "dead-lettered": none,
                },
                "release-stock": {
                    "completed": declined, "filtered": charged, "duplicate": 0, "dead-lettered": none,
                },
                "notify-customer": {
                    "completed": delivered + declined, "filtered": charged, "duplicate": 0, "dead-lettered": none,
                },
            },
        });
        format!("{expected:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_files_are_what_the_generator_writes() {
        let hint = "run `cargo run -p orders-sample -- guest-examples/orders`";
        assert!(sample().lines() == include_str!("../../orders.ndjson"), "{hint}");
        assert!(sample().expected() == include_str!("../../expected.json"), "{hint}");
    }

    #[test]
    fn every_event_is_accounted_for() {
        let expected: Value = serde_json::from_str(&sample().expected()).unwrap();
        let sum = |counts: &Value| counts.as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>();
        let reads = [
            ("reserve-stock", vec!["orders"]),
            ("charge-payment", vec!["stock"]),
            ("arrange-shipping", vec!["payments"]),
            ("release-stock", vec!["payments"]),
            ("reward-customer", vec!["payments"]),
            ("notify-customer", vec!["shipping", "payments"]),
        ];
        for (function, topics) in reads {
            let outcomes = &expected["functions"][function];
            let read: u64 = topics.iter().map(|topic| sum(&expected["topics"][topic])).sum();
            assert_eq!(sum(outcomes) + sum(&outcomes["dead-lettered"]), read, "{function}");
        }
        assert_eq!(sample().events.len() as u64, sum(&expected["topics"]["orders"]));
    }

    #[test]
    fn each_emitted_event_has_a_subject() {
        let expected: Value = serde_json::from_str(&sample().expected()).unwrap();
        for (topic, types) in expected["subjects"].as_object().unwrap() {
            for (ty, subjects) in types.as_object().unwrap() {
                let count = subjects.as_str().unwrap().split(' ').count();
                assert_eq!(expected["topics"][topic][ty], count, "{topic}: {ty}");
            }
        }
    }

    #[test]
    fn there_are_three_thousand_events_of_many_customers() {
        let sample = sample();
        let customers: BTreeSet<_> = sample.events.iter().filter_map(|e| e["partitionkey"].as_str()).collect();
        let ids: BTreeSet<_> = sample.events.iter().filter_map(|e| e["id"].as_str()).collect();
        assert_eq!((sample.events.len(), customers.len(), ids.len()), (3_000, CUSTOMERS, 3_000 - REPEATED / 2));
    }
}
