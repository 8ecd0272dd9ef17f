//! `millrace serve --check`: does the cluster have what the applications need?

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::Context;
use super::super::application::Application;
use super::super::error::{Error, Exit};
use super::super::format;
use super::super::output::{Console, Style};
use crate::broker::kafka::{Finding, KafkaLog, Plan, PlannedFunction, Verdict};
use crate::config::Config;
use crate::server::Server;

#[derive(Serialize)]
struct Report<'a> {
    bootstrap: &'a str,
    problems: usize,
    findings: &'a [Finding],
}

/// What the applications need.
fn plan(applications: &[Application], config: &Config) -> Plan {
    let mut plan = Plan::default();
    for manifest in applications.iter().map(|one| &one.manifest) {
        for topic in manifest.mentioned_topics() {
            let settings = manifest.topics.iter().find(|settings| settings.name == *topic);
            let partitions = settings.and_then(|settings| settings.partitions);
            let wanted = (partitions.unwrap_or(config.topics.partitions), partitions.is_some());
            plan.topics.insert(topic.clone(), wanted);
        }
        plan.functions.extend(manifest.functions.iter().map(|function| PlannedFunction {
            name: function.name.clone(),
            sources: function.topics.clone(),
            emits: function.grants.publish.clone().into_iter().collect(),
            window: function.idempotency.window,
        }));
    }
    plan
}

/// Components that are not there; what is in them is for `millrace check`.
fn components(applications: &[Application]) -> Vec<Finding> {
    let mut found = Vec::new();
    for one in applications {
        for function in &one.manifest.functions {
            let file = one.source.directory.join(&function.component);
            if !file.is_file() {
                found.push(Finding {
                    subject: format!("function {}", function.name),
                    verdict: Verdict::Wrong,
                    detail: format!("there is no component {}", file.display()),
                    fix: "build it with `millrace build`".to_owned(),
                });
            }
        }
    }
    found
}

/// Looks, and changes nothing.
pub(super) async fn run(applications: &[Application], config: Config, context: &mut Context) -> Result<Exit, Error> {
    let plan = plan(applications, &config);
    let bootstrap = config.kafka.bootstrap.clone();
    let log: KafkaLog = Server::reach(&config).await.map_err(|e| super::not_reached(Exit::Unreachable, &e))?;
    let mut findings = components(applications);
    let audit = log.audit(&plan).await;
    findings.extend(audit.map_err(|e| Error::new(Exit::Unreachable, e, "see that Kafka is well, and try again"))?);
    let problems = findings.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
    if context.console.is_json() {
        context.console.document(&Report { bootstrap: &bootstrap, problems, findings: &findings })?;
    } else {
        show(&bootstrap, &findings, &mut context.console)?;
    }
    Ok(if problems == 0 { Exit::Done } else { Exit::Failed })
}

fn show(bootstrap: &str, findings: &[Finding], console: &mut Console) -> Result<(), Error> {
    let mut counts = BTreeMap::<&str, u64>::new();
    for Finding { subject, verdict, detail, fix } in findings {
        let (word, style) = match verdict {
            Verdict::Good => ("good", Style::Good),
            Verdict::WillBeMade => ("will be made", Style::Notable),
            Verdict::Wrong => ("wrong", Style::Bad),
        };
        *counts.entry(word).or_default() += 1;
        let word = console.paint(style, &format!("{word:<12}"));
        let detail = if detail.is_empty() { String::new() } else { format!(": {}", format::one_line(detail, 1000)) };
        console.line(format_args!("{word}  {subject}{detail}"))?;
        if !fix.is_empty() {
            console.line(format_args!("{:<12}  fix: {}", "", format::one_line(fix, 1000)))?;
        }
    }
    let wrong = counts.get("wrong").copied().unwrap_or_default();
    let summary = if wrong == 0 {
        console.paint(Style::Good, &format!("Kafka at {bootstrap} has what is needed."))
    } else {
        console.paint(Style::Bad, &format!("Kafka at {bootstrap}: {}.", format::counted(wrong, "problem")))
    };
    console.line(summary)
}
