//! Books entries of accounts, and counts those of each: an effect that is missing, or there twice, shows in the count.

use millrace_sdk::prelude::*;

#[derive(Deserialize)]
struct Entry {
    account: String,
    number: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Booking,
    /// Refused until the account was released.
    Blocked,
    Release,
}

fn handle(entry: Event<Entry>, cx: &mut Context) -> Result<(), Failure> {
    let Entry { account, number, kind } = entry.data;
    let released = format!("released {account}");
    match kind {
        Kind::Blocked if cx.state().get(&released)?.is_none() => {
            return Err(Failure::rejected(format!("account {account} is not released")));
        }
        Kind::Release => cx.state().set(&released, "")?,
        Kind::Booking | Kind::Blocked => {}
    }
    let count = cx.state().get_json(&account)?.unwrap_or(0u64) + 1;
    cx.state().set_json(&account, &count)?;
    let from = cx.delivery().topic();
    let booked = json!({"account": account, "number": number, "count": count, "from": from});
    cx.emit("ledger", Emission::json("entry.booked", &booked)?.key(account))?;
    Ok(())
}

millrace_sdk::handler!(handle);
