//! From what the source holds to what streams serve: compiled, published, and reported on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_core::config::TrustBundle;
use tokio::{sync::watch, time::sleep_until};

use crate::{
    audit::{Audit, Event},
    cache::{TRUST_BUNDLE, World},
    class::Classes,
    compile::{CompileOptions, KeySets, compile_with, key_sets},
    debounce::Debounce,
    diagnostic::{Diagnostic, Severity},
    keys::Wanted,
    metrics::Metrics,
    model::{Object, ObjectSet},
    registry::{Members, Registry},
    server::Clients,
    source::{FileSource, Loaded, loses_endpoints, loses_members},
};

/// Turns what the source loads into worlds.
pub(crate) struct Follower {
    pub(crate) options: CompileOptions,
    /// Roots that clients are to trust, as they change.
    pub(crate) roots: watch::Receiver<Vec<Bytes>>,
    pub(crate) world: watch::Sender<Option<Arc<World>>>,
    pub(crate) metrics: Metrics,
    pub(crate) clients: Clients,
    pub(crate) diagnostics: Arc<Mutex<Vec<Diagnostic>>>,
    /// Instances that registered.
    members: watch::Receiver<Arc<Members>>,
    /// What was published last, and what was found in it whatever the clients are.
    held: (Arc<Loaded>, Vec<Diagnostic>),
    /// Nothing but instances can be new since then.
    is_current: bool,
    /// The instances among it.
    published: Arc<Members>,
    /// Where they are told.
    shown: watch::Sender<Option<Arc<Members>>>,
    /// Where changes of objects are written down.
    pub(crate) audit: Audit,
}

impl Follower {
    pub(crate) fn new(
        options: CompileOptions,
        roots: watch::Receiver<Vec<Bytes>>,
        world: watch::Sender<Option<Arc<World>>>,
        (metrics, clients): (Metrics, Clients),
        diagnostics: Arc<Mutex<Vec<Diagnostic>>>,
        registry: &Registry,
    ) -> Self {
        let members = registry.members();
        let published = Arc::clone(&members.borrow());
        Self {
            options,
            roots,
            world,
            metrics,
            clients,
            diagnostics,
            published,
            shown: registry.shown(),
            members,
            held: Default::default(),
            is_current: false,
            audit: Audit::default(),
        }
    }

    /// Publishes what the source loads until `shutdown`.
    pub(crate) async fn follow(
        mut self,
        mut loaded: watch::Receiver<Arc<Loaded>>,
        source: FileSource,
        (wanted, mut keys): (watch::Sender<Wanted>, watch::Receiver<KeySets>),
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut classes = self.clients.classes();
        let mut debounce = Debounce::default();
        let mut trigger = "config";
        loop {
            let due = debounce.due();
            tokio::select! {
                changed = loaded.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let current = loaded.borrow_and_update().clone();
                    self.metrics.source_changed();
                    let is_urgent = loses_endpoints(&self.held.0.objects, &current.objects);
                    trigger = if is_urgent { "endpoint_down" } else { trigger };
                    debounce.changed(Instant::now(), is_urgent);
                }
                Ok(()) = self.members.changed() => {
                    let current = Arc::clone(&self.members.borrow_and_update());
                    let is_urgent = loses_members(&self.published, &current);
                    trigger = if is_urgent { "endpoint_down" } else { "registry" };
                    debounce.changed(Instant::now(), is_urgent);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    let current = loaded.borrow().clone();
                    self.publish(&current);
                    wanted.send_if_modified(|held| {
                        let now = key_sets(&current.objects);
                        let is_new = *held != now;
                        *held = now;
                        is_new
                    });
                    let waited = debounce.published(Instant::now());
                    self.metrics.triggered(trigger, waited);
                    trigger = "config";
                }
                Ok(()) = keys.changed() => {
                    self.options.keys = keys.borrow_and_update().clone();
                    self.is_current = false;
                    trigger = "keys";
                    debounce.changed(Instant::now(), false);
                }
                Ok(()) = self.roots.changed() => {
                    let current = loaded.borrow().clone();
                    self.publish(&current);
                    self.metrics.triggered("trust", Duration::ZERO);
                }
                Ok(()) = classes.changed() => {
                    let known = classes.borrow_and_update().clone();
                    self.report(&known);
                }
                _ = shutdown.wait_for(|shutdown| *shutdown) => break,
            }
        }
        // The files are watched as long as somebody wants to know.
        drop(source);
    }

    /// Compiles and publishes.
    pub(crate) fn publish(&mut self, loaded: &Arc<Loaded>) {
        let begin = Instant::now();
        let members = Arc::clone(&self.members.borrow());
        let trust = TrustBundle {
            name: TRUST_BUNDLE.into(),
            roots: self.roots.borrow_and_update().clone(),
        };
        let before = self.world.borrow().clone();
        let is_current = self.is_current && Arc::ptr_eq(&self.held.0, loaded);
        let patched = before
            .as_ref()
            .filter(|before| is_current && before.trusts(&trust))
            .and_then(|before| {
                let instances = (&*self.published, &*members);
                let patched = before.compiled().patched(instances, &self.options)?;
                Some(World::patched(patched, before))
            });
        self.published = members;
        let world = match patched {
            Some(world) => {
                self.metrics.compiled("endpoints");
                world
            }
            None => {
                self.metrics.compiled("everything");
                self.compile(loaded, trust, before.as_deref())
            }
        };
        let world = Arc::new(world);
        self.world.send_replace(Some(Arc::clone(&world)));
        self.clients.published(&world);
        self.shown.send_replace(Some(Arc::clone(&self.published)));
        let compiled = world.compiled();
        let counts = [
            ("cds", compiled.clusters.len()),
            ("eds", compiled.endpoints.len()),
            ("rds", compiled.routes.len()),
        ];
        let services = compiled.services.len();
        self.metrics.published(begin.elapsed(), services, &counts);
    }

    /// Compiles everything.
    fn compile(
        &mut self,
        loaded: &Arc<Loaded>,
        trust: TrustBundle,
        before: Option<&World>,
    ) -> World {
        let (compiled, found) = compile_with(&loaded.objects, &self.published, &self.options);
        let found: Vec<_> = loaded.diagnostics.iter().cloned().chain(found).collect();
        let world = match before {
            Some(before) => World::following(compiled, trust, before),
            None => World::new(compiled, trust),
        };
        if before.is_some() {
            let held = &self.held.0.objects;
            write_down(&self.audit, held, &loaded.objects, &found);
        }
        self.held = (Arc::clone(loaded), found);
        self.is_current = true;
        let classes = self.clients.classes().borrow().clone();
        self.report(&classes);
        world.made_of(&loaded.objects)
    }

    /// Tells operators what was found, given the classes of clients that were seen.
    fn report(&self, classes: &Classes) {
        let (loaded, found) = &self.held;
        let limits = loaded
            .objects
            .values()
            .flat_map(|object| object.limits_for(classes));
        let all: Vec<_> = found.iter().cloned().chain(limits).collect();
        let mut held = self
            .diagnostics
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for diagnostic in all.iter().filter(|diagnostic| !held.contains(diagnostic)) {
            match diagnostic.severity {
                Severity::Error => tracing::error!("{diagnostic}"),
                Severity::Warning => tracing::warn!("{diagnostic}"),
            }
        }
        let is_error = |found: &&Diagnostic| found.severity == Severity::Error;
        let errors = all.iter().filter(is_error).count();
        self.metrics.diagnostics(errors, all.len() - errors);
        *held = all;
    }
}

/// Writes down which objects came, changed and went, by the file they are in, and which of them were
/// found wanting. What was there at the start is no change.
fn write_down(audit: &Audit, before: &ObjectSet, now: &ObjectSet, found: &[Diagnostic]) {
    let is_wrong = |object: &str| {
        let mut errors = found.iter().filter(|one| one.severity == Severity::Error);
        errors.find(|one| one.object == object)
    };
    let write = |object: &Object, action| {
        let name = object.key.to_string();
        let wrong =
            is_wrong(&name).map(|one| format!("{}: {}: {}", one.code, one.field, one.message));
        audit.record(&Event {
            principal: &format!("file:{}", object.place.file),
            object: &name,
            action,
            result: wrong.as_deref().unwrap_or("ok"),
        });
    };
    for (key, object) in now {
        match before.get(key) {
            None => write(object, "object.create"),
            Some(held) if held.place.text != object.place.text => write(object, "object.update"),
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|(key, _)| !now.contains_key(*key));
    for (_, object) in gone {
        write(object, "object.delete");
    }
}
