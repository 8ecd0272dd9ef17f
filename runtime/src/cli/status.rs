//! `millrace status`: how far functions are, and whether their accounts balance.

use std::time::Duration;

use millrace_core::units::Period;

use super::Context;
use super::client::{Client, Target};
use super::error::{Error, Exit};
use super::format::{self, Cell, Side, Table};
use super::output::{Console, Style};
use crate::api::types::{FunctionStatus, RefusedFunction, Status, Totals};

const EXAMPLES: &str = "\
Examples:
  millrace status
  millrace status shop.pay                     one function, with its partitions
  millrace status --watch 2s
  millrace status --wait-settled --timeout 1m  until everything published is settled";

/// Time between two looks while waiting for everything to settle.
const SETTLING_POLL: Duration = Duration::from_millis(100);

/// Arguments of `millrace status`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Only this function: its full name, or its name within the application where that is unambiguous
    function: Option<String>,
    /// Look again at this interval, until Ctrl-C
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "1s", conflicts_with = "wait_settled")]
    watch: Option<Period>,
    /// Wait until every record is settled and none is held back; exits with 4 if that takes too long
    #[arg(long)]
    wait_settled: bool,
    /// How long to wait for that
    #[arg(long, value_name = "DURATION", default_value = "60s", requires = "wait_settled")]
    timeout: Period,
}

/// Shows the status once, again and again, or when all is settled.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let client = context.client()?;
    let function = args.function.as_deref();
    if let Some(Period(interval)) = args.watch {
        return watch(&client, function, interval, &mut context.console).await;
    }
    let status = if args.wait_settled {
        let console = &mut context.console;
        let told = |status: &Status| console.progress(waiting(status));
        wait_settled(&client, function, args.timeout.0, told).await?
    } else {
        read(&client, function).await?
    };
    show(&status, function, &mut context.console)?;
    Ok(Exit::Done)
}

async fn watch(
    client: &Client,
    function: Option<&str>,
    interval: Duration,
    console: &mut Console,
) -> Result<Exit, Error> {
    // A server that is asked without a pause would have nothing else to do.
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        let status = read(client, function).await?;
        console.clear_screen()?;
        if console.is_json() {
            console.json_line(&status)?;
        } else {
            show(&status, function, console)?;
        }
        console.flush()?;
    }
}

/// The status of all functions, or of this one.
///
/// # Errors
/// If the server cannot be asked, or the name fits no function or several.
pub(crate) async fn read(client: &Client, function: Option<&str>) -> Result<Status, Error> {
    let mut status: Status = client.get(&Target::new(["v1", "status"])).await?;
    if let Some(name) = function {
        status.refused.retain(|refused| is_called(&refused.name, name));
        match position(&status.functions, name) {
            Ok(found) => status.functions = vec![status.functions.swap_remove(found)],
            // One that does not run has no figures.
            Err(_) if !status.refused.is_empty() => status.functions.clear(),
            Err(error) => return Err(error),
        }
    }
    Ok(status)
}

/// A full name as it is, so that functions can be named that run no more; a short one is looked up.
pub(super) async fn full_name(name: &str, client: &Client) -> Result<String, Error> {
    if name.contains('.') {
        return Ok(name.to_owned());
    }
    let status = read(client, Some(name)).await?;
    let running = status.functions.into_iter().map(|function| function.name);
    let mut names = running.chain(status.refused.into_iter().map(|refused| refused.name));
    Ok(names.next().unwrap_or_else(|| name.to_owned()))
}

/// Whether a function is called so: by its full name, or by its name within an application.
fn is_called(function: &str, name: &str) -> bool {
    function == name || function.split_once('.').is_some_and(|(_, short)| short == name)
}

/// Where the function with this name is: its full name, or its name within an application.
pub(super) fn position(functions: &[FunctionStatus], name: &str) -> Result<usize, Error> {
    let found: Vec<usize> = (0..functions.len()).filter(|at| is_called(&functions[*at].name, name)).collect();
    let names = |which: &mut dyn Iterator<Item = &FunctionStatus>| {
        which.map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let shown = format::one_line(name, 130);
    match found[..] {
        [one] => Ok(one),
        [] if functions.is_empty() => Err(Error::failed(
            format_args!("there is no function `{shown}`: none is deployed"),
            "start the server on an application with `millrace dev DIR`",
        )),
        [] => Err(Error::failed(
            format_args!("there is no function `{shown}`"),
            format_args!("choose one of {}", names(&mut functions.iter())),
        )),
        _ => Err(Error::failed(
            format_args!("several functions are called `{shown}`"),
            format_args!("give the full name of one of {}", names(&mut found.iter().map(|at| &functions[*at]))),
        )),
    }
}

/// Waits until every record of these functions is settled and none is held back, and answers with the status then.
/// `look` sees each status on the way.
///
/// # Errors
/// If the server cannot be asked, it takes longer than `timeout`, a function was refused, or a partition waits for an
/// operator.
pub(crate) async fn wait_settled(
    client: &Client,
    function: Option<&str>,
    timeout: Duration,
    mut look: impl FnMut(&Status) -> Result<(), Error>,
) -> Result<Status, Error> {
    let deadline = tokio::time::Instant::now() + timeout;
    let mut before: Option<Vec<Totals>> = None;
    loop {
        let status = read(client, function).await?;
        if let Some((reason, fix)) = stopped(&status) {
            return Err(Error::failed(reason, fix));
        }
        // Functions are read one after the other: one that was read as settled may since have got what another one
        // emitted. So the same figures must be seen twice.
        let totals = is_settled(&status).then(|| status.functions.iter().map(|f| f.totals).collect::<Vec<_>>());
        if totals.is_some() && totals == before {
            return Ok(status);
        }
        before = totals;
        look(&status)?;
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::new(
                Exit::TimedOut,
                format_args!("not settled within {}: {}", Period(timeout), waiting(&status)),
                "look at `millrace status` and `millrace tail`, or give more time with --timeout",
            ));
        }
        tokio::time::sleep(SETTLING_POLL).await;
    }
}

/// Whether nothing is left to do.
pub(crate) fn is_settled(status: &Status) -> bool {
    status.functions.iter().all(|f| f.lag_records == 0 && f.parked == 0)
}

/// The first function that does not run, or else the first partition that waits for an operator: why, and what can be done.
fn stopped(status: &Status) -> Option<(String, String)> {
    if let Some(RefusedFunction { name, reason }) = status.refused.first() {
        let why = format::one_line(reason, 500);
        let fix = "mend that; `millrace dev` starts it as soon as its component is built again".to_owned();
        return Some((format!("{name} was refused, and handles nothing: {why}"), fix));
    }
    status.functions.iter().find_map(|function| {
        let unit = function.units.iter().find(|unit| unit.stopped.is_some())?;
        let why = format::one_line(unit.stopped.as_deref().unwrap_or_default(), 500);
        let fix = if unit.gone > 0 {
            format!("skip what is gone with `millrace functions skip {}`; --dry-run only counts it", function.name)
        } else {
            "look at the server's log, and decide what is to become of the partition".to_owned()
        };
        Some((format!("{} has stopped on {}/{}: {why}", function.name, unit.topic, unit.partition), fix))
    })
}

fn waiting(status: &Status) -> String {
    let sum = |of: fn(&FunctionStatus) -> u64| status.functions.iter().map(of).sum::<u64>();
    let (lag, parked) = (sum(|f| f.lag_records), sum(|f| f.parked));
    format!("{} not settled, {} held back behind failing keys", format::counted(lag, "record"), format::count(parked))
}

/// Writes a status.
pub(crate) fn show(status: &Status, function: Option<&str>, console: &mut Console) -> Result<(), Error> {
    if console.is_json() {
        return console.document(status);
    }
    if status.state != "ready" {
        let state = format::one_line(&status.state, 500);
        let line = console.paint(Style::Notable, &state);
        console.line(line)?;
    }
    if status.functions.is_empty() && status.refused.is_empty() {
        return console.note("There are no functions. Start the server on an application with `millrace dev DIR`.");
    }
    if !status.functions.is_empty() {
        console.table(&functions(&status.functions))?;
    }
    show_refused(&status.refused, console)?;
    for f in status.functions.iter().filter(|f| function.is_some() || f.units.iter().any(|u| u.stopped.is_some())) {
        console.line("")?;
        console.table(&units(f))?;
    }
    notices(status, console)
}

fn functions(functions: &[FunctionStatus]) -> Table {
    let mut table = Table::new(&[
        ("function", Side::Left),
        ("rev", Side::Right),
        ("completed", Side::Right),
        ("filtered", Side::Right),
        ("duplicate", Side::Right),
        ("dead-lettered", Side::Right),
        ("lag", Side::Right),
        ("parked", Side::Right),
        ("breaker", Side::Left),
        ("open letters", Side::Right),
        ("accounts", Side::Left),
    ]);
    for f in functions {
        table.row(vec![
            Cell::styled(format::one_line(&f.name, 127), Style::Strong),
            f.revision.to_string().into(),
            Cell::figure(f.totals.completed, Style::Good),
            Cell::figure(f.totals.filtered, Style::Plain),
            Cell::figure(f.totals.duplicate, Style::Plain),
            Cell::figure(f.totals.dead_lettered, Style::Notable),
            lag(f.lag_records, f.lag_seconds),
            Cell::figure(f.parked, Style::Notable),
            Cell::styled(format::one_line(&f.breaker, 20), breaker_style(&f.breaker)),
            Cell::figure(f.open_dead_letters, Style::Bad),
            balance(f.balanced),
        ]);
    }
    table
}

fn lag(records: u64, seconds: f64) -> Cell {
    if records == 0 {
        return Cell::figure(0, Style::Faint);
    }
    Cell::styled(format!("{} ({})", format::count(records), format::seconds(seconds)), Style::Notable)
}

/// How a breaker's phase looks.
pub(super) fn breaker_style(phase: &str) -> Style {
    if phase == "closed" { Style::Good } else { Style::Bad }
}

fn balance(balanced: bool) -> Cell {
    if balanced { Cell::styled("balanced", Style::Good) } else { Cell::styled("NOT balanced", Style::Bad) }
}

fn units(f: &FunctionStatus) -> Table {
    let mut table = Table::new(&[
        ("partition", Side::Left),
        ("start", Side::Right),
        ("resume", Side::Right),
        ("settled above", Side::Right),
        ("next", Side::Right),
        ("lag", Side::Right),
        ("processable", Side::Right),
        ("parked", Side::Right),
        ("state", Side::Left),
    ]);
    for unit in &f.units {
        let state = match &unit.stopped {
            Some(why) => Cell::styled(format!("stopped: {}", format::one_line(why, 200)), Style::Bad),
            None if unit.parked > 0 => Cell::styled("retrying", Style::Notable),
            None if unit.resume < unit.next || unit.redriven_lag > 0 => Cell::styled("behind", Style::Notable),
            None => Cell::styled("settled", Style::Good),
        };
        table.row(vec![
            format!("{}/{}", format::one_line(&unit.topic, 249), unit.partition).into(),
            format::count(unit.start).into(),
            format::count(unit.resume).into(),
            Cell::figure(unit.settled_above, Style::Plain),
            format::count(unit.next).into(),
            lag(unit.lag_records, unit.lag_seconds),
            Cell::figure(unit.processable_lag, Style::Notable),
            Cell::figure(unit.parked, Style::Notable),
            state,
        ]);
    }
    table
}

/// Functions that do not run, and why.
pub(super) fn show_refused(refused: &[RefusedFunction], console: &mut Console) -> Result<(), Error> {
    for RefusedFunction { name, reason } in refused {
        let sign = console.paint(Style::Bad, "refused");
        console.line(format_args!("{sign} {}: {}", format::one_line(name, 127), format::one_line(reason, 1000)))?;
    }
    Ok(())
}

/// What a person should do something about.
fn notices(status: &Status, console: &mut Console) -> Result<(), Error> {
    let letters: u64 = status.functions.iter().map(|f| f.open_dead_letters).sum();
    if letters > 0 {
        console.line("")?;
        let waits = if letters == 1 { "waits" } else { "wait" };
        console.line(format_args!(
            "{} {waits} for somebody: millrace dead-letters list",
            format::counted(letters, "dead letter")
        ))?;
    }
    for f in status.functions.iter().filter(|f| f.units.iter().any(|unit| unit.gone > 0)) {
        let gone = format::counted(f.units.iter().map(|unit| unit.gone).sum(), "record");
        let name = format::one_line(&f.name, 127);
        console
            .line(format_args!("{gone} of {name} are gone, and it waits: millrace functions skip {name} --dry-run"))?;
    }
    for f in status.functions.iter().filter(|f| !f.balanced) {
        let text = format!("The accounts of {} do not balance: please report this with the output of --json.", f.name);
        let line = console.paint(Style::Bad, &text);
        console.line(line)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::testing::{Answer, Server};

    /// A status with one function, and these figures in it.
    pub(in crate::cli) fn function(name: &str, figures: &Value) -> Value {
        let totals = json!({
            "completed": 1200, "filtered": 3, "duplicate": 20, "dead_lettered": 2, "skipped": 0, "not_a_record": 0
        });
        let none = json!({
            "completed": 0, "filtered": 0, "duplicate": 0, "dead_lettered": 0, "skipped": 0, "not_a_record": 0
        });
        let mut function = json!({
            "name": name, "revision": 2, "component": "ab".repeat(32), "topics": ["orders"], "breaker": "closed",
            "totals": totals, "redriven": none, "lag_records": 0, "lag_seconds": 0.0, "parked": 0,
            "open_dead_letters": 0, "balanced": true,
            "units": [{"topic": "orders", "partition": 0, "start": 0, "resume": 1225, "settled_above": 0, "next": 1225,
                "totals": totals, "parked": 0}]
        });
        for (key, value) in figures.as_object().unwrap() {
            function[key] = value.clone();
        }
        function
    }

    fn status(functions: &[Value]) -> Answer {
        Answer::json(&json!({"state": "ready", "functions": functions}))
    }

    #[tokio::test]
    async fn functions_are_shown_with_their_accounts() {
        let figures = json!({"lag_records": 12_000, "lag_seconds": 63.5, "parked": 4, "breaker": "open",
            "open_dead_letters": 1, "balanced": false});
        let server =
            Server::answering([status(&[function("shop.pay", &json!({})), function("shop.ship", &figures)])]).await;
        let expected = "\
FUNCTION   REV  COMPLETED  FILTERED  DUPLICATE  DEAD-LETTERED               LAG  PARKED  BREAKER  OPEN LETTERS  ACCOUNTS
shop.pay     2      1,200         3         20              2                 0       0  closed              0  balanced
shop.ship    2      1,200         3         20              2  12,000 (1 m 3 s)       4  open                1  NOT balanced

1 dead letter waits for somebody: millrace dead-letters list
The accounts of shop.ship do not balance: please report this with the output of --json.
";
        assert_eq!(server.run(&["status"]).await.done(), expected);
    }

    #[tokio::test]
    async fn one_function_is_found_by_either_name_and_shown_with_its_partitions() {
        let all = || {
            status(&[
                function("shop.pay", &json!({})),
                function("shop.ship", &json!({})),
                function("flights.ship", &json!({})),
            ])
        };
        let server = Server::scripted(move |_| all()).await;
        for name in ["pay", "shop.pay"] {
            let out = server.run(&["status", name]).await.done();
            assert!(out.contains("orders/0       0   1,225"), "{out}");
            assert!(!out.contains("ship"), "{out}");
        }
        let err = server.run(&["status", "ship"]).await.refused(Exit::Failed);
        assert_eq!(
            err,
            "error: several functions are called `ship`\n  fix: give the full name of one of shop.ship, flights.ship\n"
        );
        let err = server.run(&["status", "x"]).await.refused(Exit::Failed);
        assert_eq!(err, "error: there is no function `x`\n  fix: choose one of shop.pay, shop.ship, flights.ship\n");
    }

    #[tokio::test]
    async fn waiting_ends_when_the_same_settled_figures_are_seen_twice() {
        let at = |completed: u64, lag: u64| {
            let totals = json!({"completed": completed, "filtered": 0, "duplicate": 0, "dead_lettered": 0, "skipped": 0,
                "not_a_record": 0});
            status(&[function("shop.pay", &json!({"totals": totals, "lag_records": lag}))])
        };
        let server = Server::answering([at(1, 5), at(6, 0), at(6, 1), at(7, 0), at(8, 0), at(8, 0)]).await;
        let out = server.run(&["status", "--wait-settled", "--json"]).await.done();
        let status: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(status["functions"][0]["totals"]["completed"], 8);
        assert_eq!(server.asked().len(), 6);
    }

    #[tokio::test]
    async fn waiting_ends_without_success_when_time_is_up_or_a_partition_has_stopped() {
        let behind = || status(&[function("shop.pay", &json!({"lag_records": 2, "parked": 1}))]);
        let server = Server::scripted(move |_| behind()).await;
        let err = server.run(&["status", "--wait-settled", "--timeout", "1ms"]).await.refused(Exit::TimedOut);
        assert!(err.starts_with("error: not settled within 1ms: 2 records not settled, 1 held back"), "{err}");

        let mut stopped = function("shop.pay", &json!({"lag_records": 2}));
        stopped["units"][0]["stopped"] = "records 5 to 9 are gone".into();
        let server = Server::answering([status(&[stopped])]).await;
        let err = server.run(&["status", "--wait-settled"]).await.refused(Exit::Failed);
        assert!(err.starts_with("error: shop.pay has stopped on orders/0: records 5 to 9 are gone"), "{err}");
        assert!(err.contains("look at the server's log"), "{err}");

        let mut stopped = function("shop.pay", &json!({"lag_records": 2}));
        (stopped["units"][0]["stopped"], stopped["units"][0]["gone"]) = ("gone".into(), 4.into());
        let server = Server::answering([status(&[stopped.clone()]), status(&[stopped])]).await;
        let err = server.run(&["status", "--wait-settled"]).await.refused(Exit::Failed);
        assert!(err.contains("fix: skip what is gone with `millrace functions skip shop.pay`"), "{err}");
        let out = server.run(&["status"]).await.done();
        assert!(
            out.contains("4 records of shop.pay are gone, and it waits: millrace functions skip shop.pay --dry-run"),
            "{out}"
        );
    }

    #[tokio::test]
    async fn what_was_refused_is_told_and_never_settled() {
        let refused = json!({"name": "shop.ship", "reason": "cannot read the component `ship.wasm`"});
        let answer = json!({"state": "functions refused: shop.ship",
            "functions": [function("shop.pay", &json!({}))], "refused": [refused]});
        let server = Server::scripted(move |_| Answer::json(&answer)).await;
        let line = "refused shop.ship: cannot read the component `ship.wasm`\n";
        let out = server.run(&["status"]).await.done();
        assert!(out.starts_with("functions refused: shop.ship\nFUNCTION") && out.contains(line), "{out}");
        assert_eq!(server.run(&["status", "ship"]).await.done(), format!("functions refused: shop.ship\n{line}"));
        assert!(server.run(&["functions"]).await.done().ends_with(line));
        for of in [&[][..], &["ship"]] {
            let err = server.run(&[&["status", "--wait-settled"], of].concat()).await.refused(Exit::Failed);
            let expected = "error: shop.ship was refused, and handles nothing: cannot read the component `ship.wasm`\n";
            assert!(err.starts_with(expected), "{err}");
        }
        server.run(&["status", "--wait-settled", "pay"]).await.done();
    }

    #[tokio::test]
    async fn a_partition_is_settled_when_its_redriven_records_are_too() {
        for (change, expected) in [
            (json!({}), "settled"),
            (json!({"redriven_lag": 1}), "behind"),
            (json!({"redriven_lag": 1, "parked": 1}), "retrying"),
        ] {
            let mut pay = function("shop.pay", &json!({}));
            pay["units"][0].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let server = Server::answering([status(&[pay])]).await;
            let out = server.run(&["status", "shop.pay"]).await.done();
            let line = out.lines().find(|line| line.starts_with("orders/0")).unwrap();
            assert!(line.trim_end().ends_with(expected), "{line}");
        }
    }
}
