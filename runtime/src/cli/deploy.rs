//! `millrace deploy`: uploads an application's functions to a running server.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use millrace_core::canary::Share;
use millrace_core::digest::Digest;
use millrace_core::manifest::Function;
use millrace_core::revision::{Origin, Source};
use serde::Serialize;
use tokio::time::Instant;

use super::application::{Application, Severity};
use super::changes::{self, Setting};
use super::client::{Client, Refusal, Sent, Target, patiently};
use super::error::{Error, Exit};
use super::output::{Console, Style};
use super::{Context, format};
use crate::api::types::{Canary, Component, DeployRequest, Deployed, Deployment, Revisions};
use crate::server;

pub(super) mod running;
mod signing;

use signing::Signing;

/// Between two looks at how far an upload is.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// The problem of a deployment whose component was not uploaded.
const UNKNOWN_COMPONENT: &str = "unknown-component";

/// Arguments of `millrace deploy`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace deploy shop                             after `millrace build shop`: shows what changes, and asks
  millrace deploy shop --yes                       without asking, as in a pipeline
  millrace deploy shop --dry-run                   only says what would change, and whether it would be taken
  millrace deploy shop --function pay              one function of it
  millrace deploy shop --canary 5%                 runs what changed for 5% of the keys, beside what is active
  millrace deploy shop --sign-with release.pem     signed, for a server that asks for it
  millrace deploy --server http://millrace:6455

Every instance runs what was deployed, whatever directory it was started on. `millrace functions history` shows what was
deployed, `millrace functions rollback` goes back.")]
pub(crate) struct Args {
    /// The application's directory, with its millrace.toml and its components, which were built before
    #[arg(default_value = ".", value_name = "DIR")]
    directory: PathBuf,
    /// Only these functions, by their names in the manifest
    #[arg(long = "function", value_name = "NAME")]
    functions: Vec<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only say what would change, and whether the server would take it. Components are uploaded for that, and nothing runs
    /// differently
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Run what changed for this share of the keys, such as 5% or 0.5%, beside the active revision. `millrace functions promote` lets
    /// it handle all, `millrace functions rollback` gives it up
    #[arg(long, value_name = "SHARE")]
    canary: Option<Share>,
    /// How long to wait until the instances run it; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    wait: u64,
    /// Sign the components with this private key of ed25519, in PEM (PKCS #8). Without it, the signature of a component is taken from the
    /// file beside it whose name has `.sig` at its end, if there is one
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
}

/// One function of the application, beside what is deployed.
struct Planned {
    name: String,
    component: Bytes,
    source: Source,
    /// Where its signature comes from, if it has one.
    signed: Option<String>,
    /// What is deployed; none if nothing ever was.
    there: Option<Revisions>,
    /// The share of the keys that it is to handle, if it is to be a canary.
    canary: Option<Share>,
}

/// What a function would become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    New,
    Changed,
    Unchanged,
}

/// A function as it is shown.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    function: &'a str,
    what: What,
    active: Option<u64>,
    component: String,
    component_changed: bool,
    /// Whether it is uploaded with a signature.
    signed: bool,
    settings: Vec<Setting>,
    /// The share of the keys that it is to handle as a canary.
    canary: Option<String>,
    /// The revision that this makes; in a dry run the one it would make.
    revision: Option<u64>,
}

impl Planned {
    /// What the active revision is made of.
    fn active(&self) -> Option<&Deployment> {
        self.there.as_ref()?.active_deployment()
    }

    fn is_changed(&self) -> bool {
        if self.canary.is_some()
            && let Some(canary) = self.canary_there()
        {
            return !self.is_made_of(canary.0)
                || Some(&canary.1.share) != self.canary.map(|share| share.to_string()).as_ref();
        }
        // What is staged takes the place of what is active, unless something else is deployed.
        let is_staged = self.there.as_ref().is_some_and(|there| there.staged.is_some());
        is_staged || self.active().is_none_or(|active| !self.is_made_of(active))
    }

    /// The canary that runs, unless something is staged that takes its place.
    fn canary_there(&self) -> Option<(&Deployment, &Canary)> {
        let there = self.there.as_ref().filter(|there| there.staged.is_none())?;
        let canary = there.canary.as_ref()?;
        Some((there.deployments.iter().find(|one| one.number == canary.revision)?, canary))
    }

    /// A signature that is not given again stays.
    fn is_made_of(&self, deployed: &Deployment) -> bool {
        deployed.origin == Some(Origin::Upload)
            && deployed.manifest.as_deref() == Some(&self.source.manifest)
            && deployed.component.as_deref() == Some(&self.source.component.to_string())
            && (self.source.signature.is_none() || self.source.signature == deployed.signature)
    }

    fn component_changed(&self) -> bool {
        self.active().and_then(|active| active.component.as_deref()) != Some(&self.source.component.to_string())
    }

    fn shown(&self) -> Shown<'_> {
        let active = self.active();
        let settings = active.and_then(|active| active.manifest.as_deref());
        Shown {
            function: &self.name,
            what: match active {
                None => What::New,
                Some(_) if self.is_changed() => What::Changed,
                Some(_) => What::Unchanged,
            },
            active: active.map(|active| active.number),
            component: self.source.component.to_string(),
            component_changed: self.component_changed(),
            signed: self.signed.is_some(),
            settings: settings.map(|old| changes::between(old, &self.source.manifest)).unwrap_or_default(),
            canary: self.canary.map(|share| share.to_string()),
            revision: None,
        }
    }

    fn request(&self, dry_run: bool) -> DeployRequest {
        DeployRequest {
            component: self.source.component.to_string(),
            manifest: self.source.manifest.clone(),
            canary: self.canary.map(|share| share.to_string()),
            signature: self.source.signature.clone(),
            builds_on: Some(self.there.as_ref().map_or(0, |there| there.latest)),
            dry_run,
        }
    }
}

/// Deploys what has changed.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let client = context.client()?;
    let console = &mut context.console;
    let application = Application::open(&args.directory, console)?;
    if !console.is_json() {
        application.source.show(Severity::Warning, &application.warnings, console)?;
    }
    let signing = args.sign_with.as_deref().map(|file| Signing::open(file, console)).transpose()?;
    let mut planned = Vec::new();
    for function in chosen(&application, &args.functions)? {
        let planning = plan(&application, function, &client).await?;
        let planning = Planned { canary: args.canary, ..planning };
        planned.push(signing::sign(planning, function, &application.source.directory, signing.as_ref())?);
    }
    if !console.is_json() {
        planned.iter().try_for_each(|one| show(one, console))?;
        console.flush()?;
    }
    let changed: Vec<&Planned> = planned.iter().filter(|one| one.is_changed()).collect();
    if changed.is_empty() {
        return nothing(&planned, args, &client, console).await;
    }
    if !args.yes && !args.dry_run {
        if !console.can_ask() {
            return Err(Error::usage(
                "nobody can be asked whether to deploy this",
                "give --yes to deploy it, or --dry-run to only look",
            ));
        }
        let many = format::counted(changed.len() as u64, "function");
        if !console.confirm(format_args!("Deploy {many} to {}?", client.server())).await? {
            console.note("Nothing was deployed.")?;
            return Ok(Exit::Failed);
        }
    }
    let rehearsed = rehearse(&changed, &client).await?;
    for one in &planned {
        upload(one, &client, console).await?;
    }
    let mut deployed = rehearse_again(&changed, rehearsed, &client).await?;
    if !args.dry_run {
        deployed = deploy(&changed, &client).await?;
        let until = Instant::now() + Duration::from_secs(args.wait);
        for one in deployed.iter().filter(|_| args.wait > 0) {
            running::wait(&client, one, until, console).await?;
        }
    }
    tell(&planned, &deployed, args, console)?;
    Ok(Exit::Done)
}

fn chosen<'a>(application: &'a Application, names: &[String]) -> Result<Vec<&'a Function>, Error> {
    let all = &application.manifest.functions;
    if names.is_empty() {
        return Ok(all.iter().collect());
    }
    let find = |name: &String| {
        let found = all.iter().find(|function| function.name.function() == name || function.name.as_str() == name);
        found.ok_or_else(|| {
            let there_are: Vec<&str> = all.iter().map(|function| function.name.function()).collect();
            let cause = format!("there is no function `{}` in the manifest", format::one_line(name, 130));
            Error::usage(cause, format_args!("choose among {}", there_are.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

/// Reads a function's component, and asks what is deployed.
async fn plan(application: &Application, function: &Function, client: &Client) -> Result<Planned, Error> {
    let component = server::read_component(function, &application.source.directory).await;
    let component = component.map_err(|e| Error::failed(e, ""))?;
    let source = Source::uploaded(&application.manifest, function, Digest::of(&component));
    let name = function.name.to_string();
    let there = running::revisions(client, &name).await?;
    Ok(Planned { name, component, source, signed: None, there, canary: None })
}

/// What happens to one function, for a person.
fn show(one: &Planned, console: &mut Console) -> Result<(), Error> {
    let name = console.paint(Style::Strong, &one.name);
    let size = format::bytes(one.component.len() as u64);
    let shown = one.shown();
    let (digest, active) = (changes::short(&shown.component), one.active());
    let from_directory = active.is_some_and(|active| active.origin == Some(Origin::Directory));
    match shown.what {
        What::New => {
            console.line(format_args!("{name}: {}, component {digest} ({size})", console.paint(Style::Good, "new")))?;
        }
        What::Unchanged => {
            console.line(format_args!("{name}: unchanged, revision {}", shown.active.unwrap_or_default()))?;
        }
        What::Changed => {
            let changed = console.paint(Style::Notable, "changes");
            let place = if from_directory { ", which runs from a directory: the upload takes its place" } else { "" };
            console.line(format_args!("{name}: {changed} revision {}{place}", shown.active.unwrap_or_default()))?;
            if shown.component_changed {
                let before = active.and_then(|active| active.component.as_deref()).map_or("", changes::short);
                console.line(format_args!("  component: {before} -> {digest} ({size})"))?;
            }
            shown.settings.iter().try_for_each(|setting| console.line(format_args!("  {setting}")))?;
        }
    }
    if let Some(share) = shown.canary.filter(|_| shown.what == What::Changed) {
        console.line(format_args!("  as a canary, for {share} of the keys"))?;
    }
    let canary = one.there.as_ref().and_then(|there| there.canary.as_ref()).filter(|_| shown.what == What::Changed);
    if let Some(canary) = canary
        && (one.canary.is_none() || !one.canary_there().is_some_and(|(there, _)| one.is_made_of(there)))
    {
        console.line(format_args!("  the canary, revision {}, ends with it", canary.revision))?;
    }
    if let Some(place) = one.signed.as_ref().filter(|_| one.is_changed()) {
        console.line(format_args!("  signed: {}", format::one_line(place, 200)))?;
    }
    if one.there.as_ref().is_some_and(|there| there.paused) {
        console.line("  it is paused, and stays so")?;
    }
    Ok(())
}

/// All runs already, unless a component was lost.
async fn nothing(planned: &[Planned], args: &Args, client: &Client, console: &mut Console) -> Result<Exit, Error> {
    let mut again = Vec::new();
    for one in planned.iter().filter(|_| !args.dry_run) {
        if upload(one, client, console).await? {
            again.push(one.name.as_str());
        }
    }
    if !again.is_empty() {
        console.note(format_args!("The log had lost the component of {}; it was uploaded again.", again.join(", ")))?;
    }
    if console.is_json() {
        tell(planned, &[], args, console)?;
    } else {
        console.note(format_args!("Nothing to deploy: {} has it all.", client.server()))?;
    }
    Ok(Exit::Done)
}

/// Sends a component, unless it is there. Says whether it was sent.
async fn upload(one: &Planned, client: &Client, console: &mut Console) -> Result<bool, Error> {
    let digest = one.source.component.to_string();
    let target = Target::new(["v1", "components", &digest]);
    match patiently(|| client.get::<Component>(&target)).await {
        Ok(_there) => return Ok(false),
        Err(Refusal::Problem { problem, .. }) if problem.status == 404 => {}
        Err(refusal) => return Err(refusal.into()),
    }
    let (sent, size) = (Sent::default(), one.component.len() as u64);
    let mut sending = pin!(patiently(|| client.put_component(&target, one.component.clone(), &sent)));
    loop {
        if sent.bytes() < size {
            let (done, all) = (format::bytes(sent.bytes()), format::bytes(size));
            console.progress(format_args!("uploading {}: {done} of {all}", one.name))?;
        } else {
            console.progress(format_args!("{} is sent; the server checks and compiles it", one.name))?;
        }
        tokio::select! {
            biased;
            answer = &mut sending => return Ok(answer.map(|_| true)?),
            () = tokio::time::sleep(SHOW_EVERY) => {}
        }
    }
}

/// Has everything checked before anything is sent, but for components that are not there yet: of those comes none.
async fn rehearse(changed: &[&Planned], client: &Client) -> Result<Vec<Option<Deployed>>, Error> {
    let mut rehearsed = Vec::with_capacity(changed.len());
    for one in changed {
        rehearsed.push(match ask(one, true, client).await {
            Err(Refusal::Problem { problem, .. }) if problem.known_as() == Some(UNKNOWN_COMPONENT) => None,
            answer => Some(answer?),
        });
    }
    Ok(rehearsed)
}

/// Has the rest checked before anything is changed.
async fn rehearse_again(
    changed: &[&Planned],
    rehearsed: Vec<Option<Deployed>>,
    client: &Client,
) -> Result<Vec<Deployed>, Error> {
    let mut all = Vec::with_capacity(changed.len());
    for (one, before) in changed.iter().zip(rehearsed) {
        all.push(match before {
            Some(deployed) => deployed,
            None => ask(one, true, client).await?,
        });
    }
    Ok(all)
}

async fn ask(one: &Planned, dry_run: bool, client: &Client) -> Result<Deployed, Refusal> {
    let (target, request) = (Target::new(["v1", "functions", &one.name]), one.request(dry_run));
    patiently(|| client.put(&target, &request)).await
}

async fn deploy(changed: &[&Planned], client: &Client) -> Result<Vec<Deployed>, Error> {
    let mut deployed: Vec<Deployed> = Vec::with_capacity(changed.len());
    for one in changed {
        deployed.push(ask(one, false, client).await.map_err(|refusal| {
            let names: Vec<&str> = deployed.iter().map(|one| one.function.as_str()).collect();
            match Error::from(refusal) {
                Error::Told { exit, cause, fix } if !names.is_empty() => {
                    Error::new(exit, format_args!("{cause}; already deployed: {}", names.join(", ")), fix)
                }
                error => error,
            }
        })?);
    }
    Ok(deployed)
}

fn tell(planned: &[Planned], deployed: &[Deployed], args: &Args, console: &mut Console) -> Result<(), Error> {
    let revision = |name: &str| deployed.iter().find(|one| one.function == name).and_then(|one| one.revision);
    if console.is_json() {
        let shown = planned.iter().map(|one| Shown { revision: revision(&one.name), ..one.shown() });
        let functions: Vec<Shown<'_>> = shown.collect();
        return console.document(&serde_json::json!({ "dry_run": args.dry_run, "functions": functions }));
    }
    if args.dry_run {
        let many = format::counted(deployed.len() as u64, "function");
        return console
            .note(format_args!("{many} would be deployed; the server takes them. Nothing runs differently."));
    }
    for one in deployed {
        let name = console.paint(Style::Strong, &one.function);
        let runs = if args.wait == 0 { "is deployed" } else { "runs" };
        let share = args.canary.map_or_else(String::new, |share| format!(" for {share} of the keys"));
        console.line(format_args!("{name}: revision {} {runs}{share}", one.revision.unwrap_or_default()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use millrace_core::manifest::Manifest;
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::testing::{Answer, Server};

    const MANIFEST: &str = "application = \"shop\"\n[functions.pay]\ncomponent = \"pay.wasm\"\ntopics = [\"orders\"]\n";
    const COMPONENT: &str = "not looked at by the client";

    fn application(manifest: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("millrace.toml"), manifest).unwrap();
        fs::write(directory.path().join("pay.wasm"), COMPONENT).unwrap();
        directory
    }

    fn revisions(manifest: &str, latest: u64) -> Value {
        let (manifest, _) = Manifest::parse(manifest).unwrap();
        let source = Source::uploaded(&manifest, &manifest.functions[0], Digest::of(COMPONENT.as_bytes()));
        json!({
            "function": "shop.pay", "state": "active", "latest": latest, "active": latest, "previous": null, "paused": false,
            "deployments": [{"number": latest, "action": "deploy", "component": source.component,
                "manifest": source.manifest, "origin": "upload"}],
            "instances": [{"instance": "a", "at": "", "live": true, "revision": latest, "paused": false}],
        })
    }

    async fn server(there: Answer, deployed: Answer) -> Server {
        let (mut deployments, mut is_uploaded) = (0, false);
        Server::scripted(move |asked| match asked.line.split(' ').collect::<Vec<_>>()[..] {
            ["GET", path] if path.ends_with("/revisions") && deployments == 0 => there.clone(),
            ["GET", path] if path.ends_with("/revisions") => Answer::json(&revisions(MANIFEST, 2)),
            ["GET", _] => Answer::problem(404, "there is no component"),
            ["PUT", path] if path.contains("/components/") => {
                is_uploaded = true;
                Answer::json(&json!({"digest": "d", "new": true}))
            }
            ["PUT", path] if path.contains("/functions/") && !is_uploaded && deployed.status == 200 => {
                Answer::problem_of(404, UNKNOWN_COMPONENT, "there is no component")
            }
            ["PUT", _] => {
                deployments += u32::from(asked.body.contains("\"dry_run\":false"));
                deployed.clone()
            }
            _ => Answer::problem(500, &asked.line),
        })
        .await
    }

    fn deployed() -> Answer {
        Answer::json(&json!({"function": "shop.pay", "number": 2, "revision": 2, "new": true}))
    }

    #[tokio::test]
    async fn what_changed_is_shown_checked_uploaded_and_deployed_in_this_order() {
        let directory = application(MANIFEST);
        let before = format!("{MANIFEST}limits = {{ time = \"9s\" }}\n");
        let server = server(Answer::json(&revisions(&before, 1)), deployed()).await;
        let ran = server.run(&["deploy", &directory.path().to_string_lossy(), "--yes"]).await;
        let expected = "shop.pay: changes revision 1\n  limits.time: \"9s\" -> \"5s\"\nshop.pay: revision 2 runs\n";
        assert_eq!(ran.done(), expected);
        let digest = Digest::of(COMPONENT.as_bytes());
        let asked = server.asked();
        let lines: Vec<&str> = asked.iter().map(|asked| asked.line.as_str()).collect();
        let (component, function) = (format!("/v1/components/{digest}"), "/v1/functions/shop.pay");
        let expected = [
            format!("GET {function}/revisions"),
            format!("PUT {function}"),
            format!("GET {component}"),
            format!("PUT {component}"),
            format!("PUT {function}"),
            format!("PUT {function}"),
            format!("GET {function}/revisions"),
        ];
        assert_eq!(lines, expected);
        assert_eq!(asked[3].body, COMPONENT);
        let request: Value = serde_json::from_str(&asked[5].body).unwrap();
        assert_eq!((&request["builds_on"], &request["component"]), (&json!(1), &json!(digest)));
    }

    #[tokio::test]
    async fn what_is_refused_is_not_uploaded_and_what_is_there_is_not_uploaded_again() {
        let directory = application(MANIFEST);
        let path = directory.path().to_string_lossy().into_owned();
        let sent = |server: &Server| {
            let uploads = |asked: &crate::cli::testing::Asked| asked.line.starts_with("PUT /v1/components/");
            server.asked().iter().filter(|asked| uploads(asked)).count()
        };
        let none = || Answer::problem(404, "it is not deployed");
        let refusing = server(none(), Answer::problem(422, "filter: this is no expression")).await;
        let err = refusing.run(&["deploy", &path, "--yes"]).await.refused(Exit::Failed);
        assert!(err.contains("this is no expression") && sent(&refusing) == 0, "{err}");
        let there = Server::scripted(|asked| match asked.line.split(' ').collect::<Vec<_>>()[..] {
            ["GET", path] if path.ends_with("/revisions") => Answer::problem(404, "it is not deployed"),
            ["GET", _] => Answer::json(&json!({"digest": "d", "new": false})),
            _ => deployed(),
        })
        .await;
        there.run(&["deploy", &path, "--yes", "--wait", "0"]).await.done();
        assert_eq!(sent(&there), 0, "somebody was interrupted after the upload");
    }

    #[tokio::test]
    async fn nothing_is_deployed_that_is_there_or_that_nobody_agreed_to() {
        let directory = application(MANIFEST);
        let path = directory.path().to_string_lossy().into_owned();
        let same = server(Answer::json(&revisions(MANIFEST, 1)), deployed()).await;
        let dry = same.run(&["deploy", &path, "--dry-run"]).await;
        assert!(dry.err.contains("Nothing to deploy") && same.asked().len() == 1, "{}", dry.err);
        // Its component is not there any more.
        let ran = same.run(&["deploy", &path]).await;
        assert!(ran.err.contains("The log had lost the component of shop.pay; it was uploaded again."), "{}", ran.err);
        assert_eq!(ran.done(), "shop.pay: unchanged, revision 1\n");
        let none = server(Answer::problem(404, "it is not deployed"), deployed()).await;
        let refused = none.run(&["deploy", &path]).await.refused(Exit::Usage);
        assert!(refused.contains("give --yes to deploy it"), "{refused}");
        assert_eq!(none.asked().len(), 1, "nothing was uploaded");
        let dry = none.run(&["deploy", &path, "--dry-run"]).await;
        assert!(dry.err.contains("1 function would be deployed"), "{}", dry.err);
        assert!(none.asked().iter().all(|asked| !asked.body.contains("\"dry_run\":false")));
        let unknown = none.run(&["deploy", &path, "--yes", "--function", "ship"]).await.refused(Exit::Usage);
        assert!(unknown.contains("choose among pay"), "{unknown}");
    }

    /// Of the first test of RFC 8032, section 7.1.
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

    #[tokio::test]
    async fn a_component_is_signed_with_a_key_or_as_the_file_beside_it_says() {
        let directory = application(MANIFEST);
        let path = directory.path().to_string_lossy().into_owned();
        let file = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        fs::write(file("key.pem"), KEY).unwrap();
        let digest = Digest::of(COMPONENT.as_bytes());
        let signature = millrace_core::signature::Key::parse(KEY).unwrap().sign(digest).to_string();
        let sent = |server: &Server| {
            let asked = server.asked();
            let last = asked.iter().rfind(|asked| asked.line.starts_with("PUT /v1/functions/")).unwrap();
            serde_json::from_str::<Value>(&last.body).unwrap()["signature"].clone()
        };
        // The same component runs, without a signature.
        let unsigned = || server(Answer::json(&revisions(MANIFEST, 1)), deployed());
        let key = file("key.pem");
        let here = unsigned().await;
        let ran = here.run(&["deploy", &path, "--yes", "--sign-with", &key]).await;
        assert!(ran.err.contains(&format!("chmod 600 {key}")), "{}", ran.err);
        let out = ran.done();
        assert_eq!(out, format!("shop.pay: changes revision 1\n  signed: with {key}\nshop.pay: revision 2 runs\n"));
        assert_eq!(sent(&here), json!(signature));
        let bytes = millrace_core::codec::base64::decode(signature.as_bytes()).unwrap();
        for content in [bytes, format!("{signature}\n").into_bytes()] {
            fs::write(file("pay.wasm.sig"), content).unwrap();
            let here = unsigned().await;
            let out = here.run(&["deploy", &path, "--yes"]).await.done();
            assert!(out.contains(&format!("  signed: as in {}\n", file("pay.wasm.sig"))), "{out}");
            assert_eq!(sent(&here), json!(signature));
        }
        // What runs with this signature runs.
        let mut same = revisions(MANIFEST, 1);
        same["deployments"][0]["signature"] = json!(signature);
        let here = server(Answer::json(&same), deployed()).await;
        assert_eq!(here.run(&["deploy", &path]).await.done(), "shop.pay: unchanged, revision 1\n");
        fs::write(file("pay.wasm.sig"), "no signature").unwrap();
        let err = unsigned().await.run(&["deploy", &path, "--yes"]).await.refused(Exit::Failed);
        assert!(err.contains("pay.wasm.sig has no signature of 64 bytes"), "{err}");
        let err = unsigned().await.run(&["deploy", &path, "--yes", "--sign-with", &path]).await.refused(Exit::Failed);
        assert!(err.contains("Is a directory"), "{err}");
        fs::write(file("key.pem"), "planted").unwrap();
        let err = unsigned().await.run(&["deploy", &path, "--yes", "--sign-with", &key]).await.refused(Exit::Usage);
        assert!(err.contains("key.pem: it is no private key of ed25519") && !err.contains("planted"), "{err}");
    }

    #[tokio::test]
    async fn what_a_rate_refuses_is_asked_again() {
        let directory = application(MANIFEST);
        let (mut asked_before, mut is_deployed) = (std::collections::BTreeSet::new(), false);
        let server = Server::scripted(move |asked| {
            if asked_before.insert((asked.line.clone(), asked.body.clone())) {
                return Answer::problem(429, "the token sends more than 1/s").retry_after(0);
            }
            match asked.line.split(' ').collect::<Vec<_>>()[..] {
                ["GET", path] if path.ends_with("/revisions") && is_deployed => Answer::json(&revisions(MANIFEST, 2)),
                ["GET", path] if path.ends_with("/revisions") => Answer::problem(404, "it is not deployed"),
                ["GET", _] => Answer::problem(404, "there is no component"),
                ["PUT", path] if path.contains("/components/") => Answer::json(&json!({"digest": "d", "new": true})),
                _ => {
                    is_deployed |= asked.body.contains("\"dry_run\":false");
                    deployed()
                }
            }
        })
        .await;
        let ran = server.run(&["deploy", &directory.path().to_string_lossy(), "--yes"]).await;
        assert!(ran.done().ends_with("shop.pay: revision 2 runs\n"));
    }

    #[tokio::test]
    async fn what_the_server_says_no_to_is_told() {
        let directory = application(MANIFEST);
        let conflict = Answer::problem(409, "shop.pay: its latest deployment is 3 by now");
        let server = server(Answer::json(&revisions(&format!("{MANIFEST}ordering = \"none\"\n"), 1)), conflict).await;
        let ran = server.run(&["deploy", &directory.path().to_string_lossy(), "--yes"]).await;
        assert!(ran.refused(Exit::Failed).contains("its latest deployment is 3 by now"));
    }
}
