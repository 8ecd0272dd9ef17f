//! From the bytes of a component to something that can be instantiated: validated, compiled once, shared by all functions.

use std::fmt;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use millrace_core::digest::Digest;
use wasmtime::component::types::{ComponentItem, Type};
use wasmtime::component::{self, Resource};

use super::bindings::millrace::function::types::{Event, Failure};
use super::bindings::{Delivery, FunctionPre};
use super::compiler::{self, Compiler};
use super::engine::{Engine, Inner};
use super::host::State;
use super::keyvalue;
use super::refusal::{self, Refusal};

/// A component that can be run. Cheap to clone; its code stays in memory as long as one clone lives.
#[derive(Clone)]
pub struct Component(pub(super) Arc<Loaded>);

pub(super) struct Loaded {
    pub(super) digest: Digest,
    /// All imports resolved, all types checked.
    pub(super) pre: FunctionPre<State>,
    /// Whether it imports what a function must be granted state for.
    pub(super) imports_state: bool,
}

impl Component {
    /// By what it is known.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Bytes of native code and data that it keeps in memory.
    #[must_use]
    pub fn code_bytes(&self) -> usize {
        let range = self.0.pre.instance_pre().component().image_range();
        (range.end as usize).saturating_sub(range.start as usize)
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Component").field(&self.0.digest).finish()
    }
}

impl Engine {
    /// Makes a component ready to run: at once if it is in use already, in about 0.1 ms if it is in the cache, and else after
    /// compiling it, which takes 50 ms for a small Rust handler and seconds for a whole interpreter. Runs on a thread for
    /// blocking work.
    ///
    /// # Errors
    /// If the bytes are not a component that can be a handler; says why, and what to do about it.
    pub async fn load(&self, bytes: Bytes) -> Result<Component, Refusal> {
        let engine = self.clone();
        let loading = tokio::task::spawn_blocking(move || engine.0.load(&bytes));
        loading.await.unwrap_or_else(|e| Err(Refusal::Compiler(e.to_string())))
    }

    /// A component that is in use or in the cache, so that its bytes are not needed.
    pub async fn known(&self, digest: Digest) -> Option<Component> {
        let engine = self.clone();
        let looking = tokio::task::spawn_blocking(move || engine.0.compiled(&digest));
        // Whoever loads it from its bytes learns what is wrong with it.
        looking.await.ok()??.ok()
    }
}

impl Inner {
    fn load(&self, bytes: &[u8]) -> Result<Component, Refusal> {
        refusal::check_bytes(bytes, self.options.component_max_bytes)?;
        let digest = Digest::of(bytes);
        if let Some(compiled) = self.compiled(&digest) {
            return compiled;
        }
        let _turn = self.compiling.take(digest);
        // Another thread may have loaded it while this one waited.
        if let Some(compiled) = self.compiled(&digest) {
            return compiled;
        }
        let (component, artifact) = self.compile(&digest, bytes)?;
        let kept = self.keep(digest, &component)?;
        // What is no handler takes no room from those that are.
        if let (Some(cache), Some(artifact)) = (&self.cache, artifact) {
            cache.write(&digest, &artifact);
        }
        Ok(kept)
    }

    /// Makes a compiled component one that functions can share, if it is a handler.
    fn keep(&self, digest: Digest, component: &component::Component) -> Result<Component, Refusal> {
        let imports_state =
            component.component_type().imports(&self.wasmtime).any(|(import, _)| import == keyvalue::INTERFACE);
        let loaded = Arc::new(Loaded { digest, pre: self.link(component)?, imports_state });
        self.loaded.retain(|_, entry| entry.strong_count() > 0);
        self.loaded.insert(digest, Arc::downgrade(&loaded));
        Ok(Component(loaded))
    }

    /// A component that need not be compiled: it is in use, or in the cache.
    fn compiled(&self, digest: &Digest) -> Option<Result<Component, Refusal>> {
        let in_use = self.in_use(digest).map(Ok);
        in_use.or_else(|| self.cached(digest).map(|component| self.keep(*digest, &component)))
    }

    fn in_use(&self, digest: &Digest) -> Option<Component> {
        self.loaded.get(digest).and_then(|entry| Weak::upgrade(entry.value())).map(Component)
    }

    #[expect(unsafe_code, reason = "there is no safe way to read a compiled component")]
    fn cached(&self, digest: &Digest) -> Option<component::Component> {
        let artifact = self.cache.as_ref()?.read(digest)?;
        // SAFETY: the bytes must come from `Component::serialize` or `Engine::precompile_component`, unchanged. Only
        // `compile` below writes artefacts, with what `serialize` gave it, into a directory that nobody but this user can
        // write to and that is checked to be so when the engine starts. `read` returns bytes only if their SHA-256 is the one
        // written with them, so a torn or damaged file does not get here. An artefact of another version, configuration or
        // processor lies under another name, and wasmtime itself refuses it.
        match unsafe { component::Component::deserialize(&self.wasmtime, &artifact) } {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(%digest, %error, "a compiled component cannot be used; compiling again");
                None
            }
        }
    }

    /// Compiles a component; answers also with what can be kept on disk.
    fn compile(&self, digest: &Digest, bytes: &[u8]) -> Result<(component::Component, Option<Vec<u8>>), Refusal> {
        if let Compiler::Apart { program, bounds } = &self.options.compiler {
            let artifact = compiler::compile_apart(program, *bounds, bytes)?;
            return Ok((self.compiled_apart(&artifact)?, Some(artifact)));
        }
        let compiled = component::Component::from_binary(&self.wasmtime, bytes);
        let component = compiled.map_err(|e| unusable(&e, Refusal::Invalid))?;
        if self.cache.is_none() {
            return Ok((component, None));
        }
        let artifact = component.serialize();
        let artifact =
            artifact.inspect_err(|error| tracing::warn!(%digest, %error, "a compiled component cannot be kept"));
        Ok((component, artifact.ok()))
    }

    #[expect(unsafe_code, reason = "there is no safe way to read a compiled component")]
    fn compiled_apart(&self, artifact: &[u8]) -> Result<component::Component, Refusal> {
        // SAFETY: the bytes must come from `Engine::precompile_component`, unchanged. A process of this very program has made
        // them with that function and handed them over through a pipe that nobody else has; it was given no code but the
        // component. Its configuration is this engine's, which is tested, and wasmtime refuses what is of another one.
        let component = unsafe { component::Component::deserialize(&self.wasmtime, artifact) };
        component.map_err(|e| unusable(&e, Refusal::Compiler))
    }

    /// Checks that the component is a handler and imports only what exists.
    fn link(&self, component: &component::Component) -> Result<FunctionPre<State>, Refusal> {
        let ty = component.component_type();
        for (import, _) in ty.imports(&self.wasmtime) {
            refusal::check_import(import)?;
        }
        refusal::check_exports(ty.exports(&self.wasmtime).map(|(export, _)| export))?;
        let pre = self.linker.instantiate_pre(component).and_then(FunctionPre::new);
        let fits = pre.and_then(|pre| self.check_handler(component).map(|()| pre));
        fits.map_err(|e| Refusal::Mismatch(quoted_error(&e)))
    }

    /// Checks what the handler takes and gives. Wasmtime itself looks at that only when there is an instance, and each event would
    /// fail for it.
    fn check_handler(&self, component: &component::Component) -> wasmtime::Result<()> {
        let ty = self.linker.substituted_component_type(component)?;
        for (_, export) in ty.exports(&self.wasmtime).filter(|(export, _)| refusal::is_handler(export)) {
            let ComponentItem::ComponentInstance(handler) = export.ty else { continue };
            let function = handler.get_export(&self.wasmtime, "handle").map(|export| export.ty);
            if let Some(ComponentItem::ComponentFunc(handle)) = function {
                handle.typecheck::<(Event<'_>, Resource<Delivery>), (Result<(), Failure>,)>(&ty.instance_type())?;
                // That takes owned ones for the same.
                wasmtime::ensure!(
                    matches!(handle.params().nth(1), Some((_, Type::Borrow(_)))),
                    "`handle` takes a delivery of its own, and not a borrowed one"
                );
            }
        }
        Ok(())
    }
}

/// Why a component cannot be used: because it needs more than an instance can have, or else for what such an error means where it occurred.
fn unusable(error: &wasmtime::Error, otherwise: fn(String) -> Refusal) -> Refusal {
    let said = quoted_error(error);
    refusal::beyond_pool(&said).unwrap_or_else(|| otherwise(said))
}

fn quoted_error(error: &wasmtime::Error) -> String {
    refusal::quoted(&format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sandbox::EngineOptions;

    #[tokio::test]
    async fn a_component_is_shared_while_it_is_in_use_and_forgotten_after() {
        let engine = Engine::new(EngineOptions { max_instances: 1, ..EngineOptions::default() }).unwrap();
        let bytes = Bytes::from(wat::parse_str(include_str!("../../../tests/fixtures/guest.wat")).unwrap());
        let (one, two) = (engine.load(bytes.clone()).await.unwrap(), engine.load(bytes.clone()).await.unwrap());
        assert!(Arc::ptr_eq(&one.0, &two.0));
        assert_eq!(one.digest(), Digest::of(&bytes));
        drop((one, two));
        assert!(engine.0.in_use(&Digest::of(&bytes)).is_none());
    }
}
