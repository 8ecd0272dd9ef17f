//! Follows what is changed while an application runs: its manifest, its sources, its components.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use millrace_core::manifest::Function;
use tokio::sync::mpsc;

use super::watch::{Places, Watching};
use super::{activate, build, short_name};
use crate::cli::application::{Application, Severity};
use crate::cli::error::Error;
use crate::cli::{Context, changes};
use crate::config;
use crate::server::Server;

/// Changes that are told and not looked at yet; those that come meanwhile are gathered.
const QUEUE: usize = 1;

/// An application that is followed.
pub(super) struct Following<'a> {
    server: &'a Server,
    application: Application,
    places: Places,
    /// Where changes are told; kept for whoever watches next.
    changes: mpsc::Sender<Vec<PathBuf>>,
    changed: mpsc::Receiver<Vec<PathBuf>>,
    watching: Watching,
}

impl<'a> Following<'a> {
    /// Begins to watch; none if the system does not let us, which is said.
    pub(super) fn start(
        server: &'a Server,
        application: Application,
        places: Places,
        context: &mut Context,
    ) -> Result<Option<Self>, Error> {
        let (changes, changed) = mpsc::channel(QUEUE);
        match places.watch(&application.manifest, changes.clone()) {
            Ok(watching) => {
                say_what_is_missing(&application, &places, context)?;
                Ok(Some(Self { server, application, places, changes, changed, watching }))
            }
            Err(error) => {
                let words = "warning: nothing is watched, and what changes is taken over by a restart only";
                context.console.note(format_args!("{words}: {error}"))?;
                Ok(None)
            }
        }
    }

    /// Takes over what changes, for ever.
    pub(super) async fn follow(mut self, context: &mut Context) -> Error {
        while let Some(paths) = self.changed.recv().await {
            if let Err(error) = self.take_over(&paths, context).await {
                return error;
            }
        }
        Error::failed("sources are no longer watched", "start again, or use --no-watch")
    }

    async fn take_over(&mut self, paths: &[PathBuf], context: &mut Context) -> Result<(), Error> {
        if paths.contains(&self.places.directory.join(config::FILE_NAME)) {
            let words = "changed: it is read at the start only; start again to take it over.";
            context.console.note(format_args!("{} {words}", config::FILE_NAME))?;
        }
        if paths.contains(&self.places.manifest) {
            self.manifest_changed(context).await?;
        }
        self.sources_changed(paths, context).await
    }

    /// Reads the manifest again. One that cannot be used is shown with its problems, and what runs goes on.
    async fn manifest_changed(&mut self, context: &mut Context) -> Result<(), Error> {
        let next = match Application::open(&self.places.manifest, &mut context.console) {
            Ok(next) => next,
            Err(Error::Told { cause, .. }) => return keep(&cause, context),
            Err(closed) => return Err(closed),
        };
        if !context.console.is_json() {
            next.source.show(Severity::Warning, &next.warnings, &mut context.console)?;
            context.console.flush()?;
        }
        let made = match self.server.make_topics(&next.manifest).await {
            Ok(made) => made,
            Err(error) => return keep(&error.to_string(), context),
        };
        let retired = self.server.retire_others(&next.manifest).await;
        let retired = retired.map_err(|e| Error::failed(e, "start again to recover"))?;
        let kept_differently = changes::of_retention(&self.application.manifest, &next.manifest);
        self.application = next;
        let mut changed = 0;
        for (what, topics) in [("a new topic", made), ("another retention", kept_differently)] {
            changed += topics.len();
            for topic in topics {
                context.console.note(format_args!("{topic}: {what}"))?;
            }
        }
        for name in &retired {
            let words = "no longer in the manifest; it stopped, and its progress and dead letters stay";
            context.console.note(format_args!("{name}: {words}"))?;
        }
        changed += retired.len() + self.functions_changed(context).await?;
        if changed == 0 {
            context.console.note("The manifest says the same as before.")?;
        }
        // The new one first, so that nothing goes unseen between them.
        match self.places.watch(&self.application.manifest, self.changes.clone()) {
            Ok(watching) => self.watching = watching,
            Err(error) => context.console.note(format_args!("New sources cannot be watched; start again: {error}"))?,
        }
        say_what_is_missing(&self.application, &self.places, context)
    }

    /// Builds and activates each function that does not run as the manifest says; answers with how many.
    async fn functions_changed(&self, context: &mut Context) -> Result<usize, Error> {
        let mut changed = 0;
        for function in &self.application.manifest.functions {
            let running = self.server.registry().function(&function.name);
            if running.as_ref().is_some_and(|info| *info.settings == *function) {
                continue;
            }
            changed += 1;
            let is_built_so = running.as_ref().is_some_and(|info| info.settings.build == function.build);
            if (!is_built_so || self.places.are_newer(function)) && !self.build(function, context).await? {
                continue;
            }
            let Some(revision) = activate(self.server, function, &self.places.directory, context).await? else {
                continue;
            };
            let what = match running {
                Some(info) => format!("changed {}", changes::of_function(&info.settings, function).join(", ")),
                None => "new".to_owned(),
            };
            context.console.note(format_args!("{}: {what}; revision {revision} runs", function.name))?;
        }
        Ok(changed)
    }

    /// Rebuilds and swaps the functions that are made of these files.
    async fn sources_changed(&self, paths: &[PathBuf], context: &mut Context) -> Result<(), Error> {
        let affected = self.application.manifest.functions.iter();
        for function in affected.filter(|function| self.places.concern(function, paths)) {
            let began = Instant::now();
            let before = self.server.registry().function(&function.name).map(|info| info.digest);
            if !self.build(function, context).await?
                || activate(self.server, function, &self.places.directory, context).await?.is_none()
            {
                continue;
            }
            let after = self.server.registry().function(&function.name);
            if let Some(info) = after
                && Some(&info.digest) != before.as_ref()
            {
                let (name, revision, took) = (&function.name, info.revision, rounded(began.elapsed()));
                context.console.note(format_args!("swapped {name} to revision {revision} in {took}"))?;
            }
        }
        Ok(())
    }

    /// Builds a function that has a build command; if that fails, says so, and what ran before goes on.
    async fn build(&self, function: &Function, context: &mut Context) -> Result<bool, Error> {
        if function.build.is_none() {
            return Ok(true);
        }
        for one in build::plan(&self.application, &[short_name(function)])? {
            if !build(&one, context).await? {
                let registry = self.server.registry();
                registry.refuse(&function.name, format!("`{}` failed", one.command));
                let runs = registry.function(&function.name).is_some();
                let what = if runs { "the revision that ran before goes on" } else { "it does not run" };
                context.console.note(format_args!("{}: {what}", function.name))?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A place that is not there cannot be watched, and is probably misspelt.
fn say_what_is_missing(application: &Application, places: &Places, context: &mut Context) -> Result<(), Error> {
    for (function, place) in places.missing(&application.manifest) {
        let words = "is not there, and changes of it are not seen";
        context.console.note(format_args!("warning: {function}: `{place}`, which `watch` names, {words}"))?;
    }
    Ok(())
}

fn keep(why: &str, context: &mut Context) -> Result<(), Error> {
    context.console.note(format_args!("{why}\nNothing of the manifest was taken over; what runs goes on."))
}

fn rounded(took: Duration) -> String {
    format!("{took:.1?}")
}
