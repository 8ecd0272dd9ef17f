//! Tells which functions' sources changed.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use millrace_core::manifest::{self, Function, Manifest};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Changes that come within this time of one another are told together: editors write a file in several steps.
const QUIET: Duration = Duration::from_millis(150);
/// Changes that wait to be told; more are told with the next ones.
const QUEUE_CHANGES: usize = 256;

/// Watches while it lives.
pub(super) struct Watching {
    _watcher: RecommendedWatcher,
}

/// Begins to watch an application's sources; none if the system does not let us.
pub(super) fn start(directory: &Path, manifest: &Manifest, changes: mpsc::Sender<Vec<PathBuf>>) -> Option<Watching> {
    let (sender, receiver) = mpsc::channel(QUEUE_CHANGES);
    let on_event = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if matches!(event.kind, EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_)) {
            for path in event.paths.into_iter().filter(|path| is_source(path)) {
                // When the queue is full a rebuild is due anyway.
                sender.try_send(path).ok();
            }
        }
    };
    let mut watcher = notify::recommended_watcher(on_event).ok()?;
    let mut places: Vec<PathBuf> = vec![directory.to_path_buf()];
    for function in &manifest.functions {
        places.extend(watched(function, directory));
    }
    for place in places {
        if let Err(error) = watcher.watch(&place, RecursiveMode::Recursive) {
            tracing::warn!(place = %place.display(), %error, "Changes there are not seen.");
        }
    }
    tokio::spawn(gather(receiver, changes));
    Some(Watching { _watcher: watcher })
}

/// Whether one of these changes calls for a build of this function.
pub(super) fn concerns(function: &Function, directory: &Path, paths: &[PathBuf]) -> bool {
    let places = watched(function, directory);
    paths.iter().any(|path| places.iter().any(|place| path.starts_with(place)))
}

/// Whether a function's component is missing, or older than what it is built from.
pub(super) fn is_stale(function: &Function, directory: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let Ok(built) = modified(&directory.join(&function.component)) else { return true };
    let mut places = watched(function, directory);
    while let Some(place) = places.pop() {
        if let Ok(entries) = place.read_dir() {
            places.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir() || is_source(path)));
            places.retain(|path| !path.ends_with("target") && !path.ends_with(".millrace"));
        } else if is_source(&place) && modified(&place).is_ok_and(|at| at > built) {
            return true;
        }
    }
    false
}

/// What a function is built from.
fn watched(function: &Function, directory: &Path) -> Vec<PathBuf> {
    let places: Vec<PathBuf> = if function.build.is_none() {
        vec![directory.join(&function.component)]
    } else if function.watch.is_empty() {
        vec![directory.to_path_buf()]
    } else {
        function.watch.iter().map(|place| directory.join(place)).collect()
    };
    places.into_iter().filter_map(|place| place.canonicalize().ok()).collect()
}

/// Neither a build's results, nor our own data, nor what an editor hides.
fn is_source(path: &Path) -> bool {
    let hidden =
        |part: Component<'_>| matches!(part, Component::Normal(name) if name.to_string_lossy().starts_with('.'));
    let results = |part: Component<'_>| matches!(part, Component::Normal(name) if name == "target");
    let component = path.extension().is_some_and(|extension| extension == "wasm");
    let of_interest = !path.components().any(|part| hidden(part) || results(part));
    component || of_interest && (path.extension().is_some() || path.ends_with(manifest::FILE_NAME))
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
