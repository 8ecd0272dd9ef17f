//! Tells which functions' sources changed.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use millrace_core::manifest::{Function, Manifest};
use millrace_core::name::FunctionName;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::config;

/// Changes that come within this time of one another are told together: editors write a file in several steps.
const QUIET: Duration = Duration::from_millis(150);
/// Changes that wait to be told; more are told with the next ones.
const QUEUE_CHANGES: usize = 256;

/// Watches while it lives.
pub(super) struct Watching {
    _watcher: RecommendedWatcher,
}

/// Where an application lies, for telling sources from what is made of them.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The application's directory.
    pub(super) directory: PathBuf,
    /// Its manifest.
    pub(super) manifest: PathBuf,
    /// Where the log lies.
    pub(super) data: PathBuf,
}

impl Places {
    /// Begins to watch an application's sources.
    ///
    /// # Errors
    /// If the system does not let us.
    pub(super) fn watch(&self, manifest: &Manifest, changes: mpsc::Sender<Vec<PathBuf>>) -> notify::Result<Watching> {
        let (sender, receiver) = mpsc::channel(QUEUE_CHANGES);
        let mut places: Vec<PathBuf> = vec![self.directory.clone()];
        for function in &manifest.functions {
            places.extend(self.watched(function));
        }
        let (this, roots) = (self.clone(), places.clone());
        let on_event = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            if matches!(event.kind, EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_)) {
                let is_told = |path: &PathBuf| is_component(path) || this.is_source(path, &roots);
                for path in event.paths.into_iter().filter(is_told) {
                    // When the queue is full a rebuild is due anyway.
                    sender.try_send(path).ok();
                }
            }
        };
        let mut watcher = notify::recommended_watcher(on_event)?;
        for place in places {
            if let Err(error) = watcher.watch(&place, RecursiveMode::Recursive) {
                tracing::warn!(place = %place.display(), %error, "Changes there are not seen.");
            }
        }
        tokio::spawn(gather(receiver, changes));
        Ok(Watching { _watcher: watcher })
    }

    /// What functions want to be watched and is not there.
    pub(super) fn missing<'a>(&self, manifest: &'a Manifest) -> Vec<(&'a FunctionName, &'a str)> {
        let wanted = manifest.functions.iter().filter(|function| function.build.is_some());
        let wanted = wanted.flat_map(|function| function.watch.iter().map(|place| (&function.name, place.as_str())));
        wanted.filter(|(_, place)| !self.directory.join(place).exists()).collect()
    }

    /// Whether one of these changes calls for a build of this function, or for its new component if nothing builds it.
    pub(super) fn concern(&self, function: &Function, paths: &[PathBuf]) -> bool {
        let places = self.watched(function);
        let concerns = |path: &PathBuf| {
            let is_made = function.build.is_some() && (is_component(path) || !self.is_source(path, &places));
            places.iter().any(|place| path.starts_with(place)) && !is_made && !self.is_setting(path)
        };
        paths.iter().any(concerns)
    }

    /// Whether a function's component is missing, or older than what it is built from.
    pub(super) fn are_newer(&self, function: &Function) -> bool {
        let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
        let Ok(built) = modified(&self.directory.join(&function.component)) else { return true };
        let roots = self.watched(function);
        let mut places = roots.clone();
        while let Some(place) = places.pop() {
            if let Ok(entries) = place.read_dir() {
                let entries = entries.flatten().map(|entry| entry.path());
                places.extend(entries.filter(|path| self.is_inside(path, &roots)));
            } else if self.is_source(&place, &roots)
                && !is_component(&place)
                && !self.is_setting(&place)
                && modified(&place).is_ok_and(|at| at > built)
            {
                return true;
            }
        }
        false
    }

    /// What a function is built from.
    fn watched(&self, function: &Function) -> Vec<PathBuf> {
        let places: Vec<PathBuf> = if function.build.is_none() {
            vec![self.directory.join(&function.component)]
        } else if function.watch.is_empty() {
            vec![self.directory.clone()]
        } else {
            function.watch.iter().map(|place| self.directory.join(place)).collect()
        };
        places.into_iter().filter_map(|place| place.canonicalize().ok()).collect()
    }

    /// A file that somebody writes.
    fn is_source(&self, path: &Path, roots: &[PathBuf]) -> bool {
        self.is_inside(path, roots) && (path.extension().is_some() || path == self.manifest)
    }

    /// Neither a build's results, nor our own data, nor what an editor hides. What lies above the place that is watched does
    /// not matter: a whole application may lie in a hidden directory.
    fn is_inside(&self, path: &Path, roots: &[PathBuf]) -> bool {
        let within =
            roots.iter().filter_map(|root| path.strip_prefix(root).ok()).min_by_key(|rest| rest.as_os_str().len());
        let is_kept_out = |part: Component<'_>| matches!(part, Component::Normal(name) if name == "target" || name.to_string_lossy().starts_with('.'));
        within.is_some_and(|rest| !rest.components().any(is_kept_out)) && !path.starts_with(&self.data)
    }

    /// Says how things run, not what they are built from.
    fn is_setting(&self, path: &Path) -> bool {
        path == self.manifest || path == self.directory.join(config::FILE_NAME)
    }
}

fn is_component(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wasm")
}

async fn gather(mut receiver: mpsc::Receiver<PathBuf>, changes: mpsc::Sender<Vec<PathBuf>>) {
    while let Some(first) = receiver.recv().await {
        let mut paths = vec![first];
        while let Ok(Some(path)) = tokio::time::timeout(QUIET, receiver.recv()).await {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        if changes.send(paths).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "application = 'shop'\n\
        [functions.built]\ntopics = ['a']\nbuild = 'make'\ncomponent = 'out/built.wasm'\n\
        [functions.part]\ntopics = ['a']\nbuild = 'make'\ncomponent = 'target/part.wasm'\nwatch = ['part']\n\
        [functions.found]\ntopics = ['a']\ncomponent = 'found.wasm'\n";

    /// An application in a hidden directory below one for results, which must not matter.
    fn application() -> (tempfile::TempDir, Places, Manifest) {
        let made = tempfile::tempdir().unwrap();
        let directory = made.path().canonicalize().unwrap().join("target/.hidden/shop");
        for place in ["part/src", "out", "target", ".git", "log"] {
            std::fs::create_dir_all(directory.join(place)).unwrap();
        }
        for file in ["out/built.wasm", "target/part.wasm", "found.wasm"] {
            std::fs::write(directory.join(file), "").unwrap();
        }
        let (manifest, data) = (directory.join("millrace.toml"), directory.join("log"));
        (made, Places { directory, manifest, data }, Manifest::parse(MANIFEST).unwrap().0)
    }

    #[test]
    fn a_change_concerns_those_that_are_made_of_it() {
        let (_made, places, manifest) = application();
        for (file, expected) in [
            ("lib.rs", &["built"][..]),
            ("part/src/lib.rs", &["built", "part"]),
            ("found.wasm", &["found"]),
            // What a build makes must not build again, for ever.
            ("out/built.wasm", &[]),
            ("target/part.wasm", &[]),
            ("target/debug/x.d", &[]),
            (".git/index.lock", &[]),
            ("log/log/1.sst", &[]),
            ("millrace.toml", &[]),
            ("millrace-config.toml", &[]),
        ] {
            let path = [places.directory.join(file)];
            let concerned = manifest.functions.iter().filter(|function| places.concern(function, &path));
            let concerned: Vec<&str> = concerned.map(|function| function.name.function()).collect();
            assert_eq!(concerned, expected, "{file}");
        }
    }

    #[test]
    fn a_place_that_is_not_there_is_known() {
        let (_made, places, _) = application();
        let text = MANIFEST.replace("watch = ['part']", "watch = ['part', 'prat', '../../../nowhere']");
        let manifest = Manifest::parse(&text).unwrap().0;
        let missing: Vec<(&str, &str)> =
            places.missing(&manifest).into_iter().map(|(function, place)| (function.function(), place)).collect();
        assert_eq!(missing, [("part", "prat"), ("part", "../../../nowhere")]);
    }

    #[test]
    fn a_component_is_stale_if_something_it_is_made_of_is_newer() {
        let (_made, places, manifest) = application();
        let stale = |file: &str| {
            let path = places.directory.join(file);
            std::fs::write(&path, "").unwrap();
            let later = std::fs::metadata(places.directory.join("out/built.wasm")).unwrap().modified().unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(later + Duration::from_secs(60)).unwrap();
            let built = manifest.functions.iter().filter(|function| function.build.is_some());
            let stale: Vec<&str> =
                built.filter(|function| places.are_newer(function)).map(|function| function.name.function()).collect();
            std::fs::remove_file(path).unwrap();
            stale
        };
        assert_eq!(stale("lib.rs"), ["built"]);
        assert_eq!(stale("part/src/lib.rs"), ["built", "part"]);
        for file in ["millrace.toml", "millrace-config.toml", "target/x.rs", ".git/x.rs", "log/x.rs", "found.wasm"] {
            assert_eq!(stale(file), [""; 0], "{file}");
        }
        std::fs::remove_file(places.directory.join("target/part.wasm")).unwrap();
        assert_eq!(stale("millrace.toml"), ["part"]);
    }
}
