//! The one task that owns the way from registries, objects and migrations to published resources. It takes the
//! newest of each, so a burst costs one compilation; it does not wait for a burst to end, because a stopped
//! instance must be out of the balancing at once. A command is compiled, written down, and only then published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::world::{Proxies, World, version_of};
use crate::addresses::plan::{Aside, Changes, Plan, Slots};
use crate::addresses::store::{Store, StoreError};
use crate::compile::{Compiled, Compiler};
use crate::kubernetes::report::{Retry, next, reached};
use crate::migration::book::{Book, Draft, OrderError};
use crate::migration::keeper::Keeper;
use crate::migration::ledger::LedgerError;
use crate::migration::sides::circumstances;
use crate::migration::stage::Order;
use crate::model::Model;
use crate::model::addresses::Addresses;
use crate::model::instance::{RegistryView, ServiceView};
use crate::model::migration::MigrationState;
use crate::news::tell;
use crate::objects::{Kind, Loaded, ObjectName, ObjectRef, problems_of};

/// A declared change that could not be written down is tried again after this, and after twice as long each time, up to
/// [`MAX_RETRY`].
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// Declared changes that are written at a time.
const AT_ONCE: usize = 16;
/// Commands that may wait; the API answers 503 beyond.
pub const QUEUE: usize = 64;

/// Where changes come from.
#[derive(Debug)]
pub struct Sources {
    /// What is registered with Eureka.
    pub registry: watch::Receiver<Arc<RegistryView>>,
    /// The endpoints of Services; without Kubernetes there are none.
    pub services: Option<watch::Receiver<ServiceView>>,
    /// Whether this replica does what the objects ask for; without others it always does.
    pub leads: Option<watch::Receiver<bool>>,
    /// Which services' virtual addresses are aside at the replica that leads; without others nobody says so.
    pub aside: Option<watch::Receiver<Arc<Aside>>>,
    /// The user's objects.
    pub folder: watch::Receiver<Loaded>,
    /// Whether Gateways are given pods.
    pub in_pods: bool,
    /// What the API wants.
    pub commands: mpsc::Receiver<Command>,
}

/// A change that the API wants.
#[derive(Debug)]
pub struct Command {
    /// Of which migration.
    pub name: ObjectName,
    /// What.
    pub order: Order,
    /// The name of the token that was shown.
    pub token: Option<String>,
    /// When it arrived.
    pub at: Instant,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Done, CommandError>>,
}

/// A command was carried out: the world already shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Whether the position changed.
    pub changed: bool,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not to be.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// It could not be written down, so it was not done.
    #[error("the change is not made, for it cannot be written down: {0}")]
    Ledger(#[from] LedgerError),
    /// Our fault.
    #[error(
        "the change is not made: the compiler failed on it; please report this with the log's last lines"
    )]
    Compiler,
}

/// The task's state.
pub struct Bridge {
    sources: Sources,
    keeper: Keeper,
    proxies: Proxies,
    world: watch::Sender<Arc<World>>,
    book: Book,
    /// The book as the compiler reads it: the same `Arc` while nothing changes, by which the compiler knows.
    in_model: Arc<BTreeMap<ObjectName, MigrationState>>,
    compiler: Compiler,
    assigner: Assigner,
    /// What was followed last of what the replica that leads says.
    followed: Arc<Aside>,
    /// Whether this replica led when it was looked at last.
    led: bool,
    /// When what the objects ask for and could not be written down is tried again, and how long that was waited for.
    retry: Option<Retry>,
}

/// Who has which virtual address, and where that is written down.
#[derive(Debug)]
pub struct Assigner {
    slots: Slots,
    store: Store,
    /// As the compiler reads them.
    in_model: Arc<Addresses>,
    /// The services that were planned for last: nothing is to be done while they are the same.
    planned: Arc<BTreeSet<Arc<str>>>,
    /// For the other replicas.
    aside: watch::Sender<Arc<Aside>>,
}

/// A model, and what the proxies are to be told of it.
#[derive(Debug, Clone)]
struct Translation {
    model: Model,
    compiled: Arc<Compiled>,
}

impl Assigner {
    /// Over what the last run left behind.
    pub fn new(slots: Slots, store: Store) -> Assigner {
        let in_model = Arc::new(slots.in_model());
        let aside = watch::Sender::new(Arc::new(slots.aside()));
        Assigner { slots, store, in_model, planned: Arc::default(), aside }
    }

    /// Which services are aside; always the newest.
    pub fn aside(&self) -> watch::Receiver<Arc<Aside>> {
        self.aside.subscribe()
    }

    /// Lets those be aside that are at the replica that leads.
    async fn follow(&mut self, theirs: &Aside) {
        let changes = self.slots.follow(theirs);
        if !changes.is_empty() && self.carry_out(changes).await {
            // Who has lost a slot by that is given one with the next plan.
            self.planned = Arc::default();
        }
    }

    /// Writes changes down and takes them up. False: they cannot be written.
    async fn carry_out(&mut self, changes: Changes) -> bool {
        let (store, to_write) = (self.store.clone(), changes.clone());
        let written = tokio::task::spawn_blocking(move || store.write(&to_write)).await;
        let written = written.map_err(|error| StoreError::Lost(error.to_string())).flatten();
        if let Err(error) = written {
            tracing::error!(%error, "virtual addresses cannot be written down, so new services have none");
            return false;
        }
        self.slots.apply(&changes);
        tell(&self.aside, self.slots.aside());
        true
    }

    /// Gives addresses to services that have none; says whether that changed any. An address is written down before
    /// anybody is told of it.
    async fn assign(&mut self, services: &Arc<BTreeSet<Arc<str>>>) -> bool {
        if Arc::ptr_eq(services, &self.planned) {
            return false;
        }
        let Plan { changes, without } = self.slots.plan(services, Timestamp::now());
        if without > 0 {
            tracing::warn!(
                services = without,
                "no virtual addresses are left, so DNS in sidecars does not know these services; give a larger \
                 --virtual-range and --virtual-range6"
            );
        }
        if !changes.is_empty() && !self.carry_out(changes).await {
            return false;
        }
        self.planned = services.clone();
        let in_model = self.slots.in_model();
        let changed = in_model != *self.in_model;
        if changed {
            self.in_model = Arc::new(in_model);
        }
        changed
    }
}

impl Bridge {
    /// Over what the last run left behind.
    pub fn new(
        sources: Sources,
        keeper: Keeper,
        book: Book,
        assigner: Assigner,
        proxies: Proxies,
        world: watch::Sender<Arc<World>>,
    ) -> Bridge {
        let in_model = Arc::new(book.in_model());
        Bridge {
            sources,
            keeper,
            proxies,
            world,
            book,
            in_model,
            compiler: Compiler::default(),
            assigner,
            followed: Arc::default(),
            led: false,
            retry: None,
        }
    }

    /// Brings everything known into force. The first call ends the silence after a start.
    pub async fn refresh(&mut self) {
        let ordered_at = Instant::now();
        let folder = self.sources.folder.borrow_and_update().clone();
        let registry = self.registry();
        if let Some(kept) = &folder.states {
            self.book.follow(&folder.objects, kept);
        }
        let leads = self.sources.leads.as_mut().is_none_or(|leads| *leads.borrow_and_update());
        let led = std::mem::replace(&mut self.led, leads);
        let begins = leads && !led;
        if let Some(aside) = &mut self.sources.aside {
            let theirs = aside.borrow_and_update().clone();
            if begins || !Arc::ptr_eq(&theirs, &self.followed) {
                self.assigner.follow(&theirs).await;
                self.followed = theirs;
            }
        }
        let model = self.model(&folder, registry);
        let world = |name: &ObjectName| circumstances(&model, name);
        let actor = |name: &ObjectName| {
            let object = ObjectRef { kind: Kind::Migration, name: name.clone() };
            match folder.file_of(&object) {
                Some(place) if folder.states.is_some() => place.to_string(),
                Some(file) => format!("file:{file}"),
                None => format!("file:{name}"),
            }
        };
        let is_due = self.retry.is_none_or(|(at, _)| at <= ordered_at);
        let drafts = match leads && is_due {
            true => self.book.declarations(&folder.objects, actor, world, Timestamp::now()),
            false => Vec::new(),
        };
        if !leads || is_due && drafts.is_empty() {
            self.retry = None;
        }
        // Endpoints do not wait for the API server. A migration that is new has no state without its draft, and its
        // service would go where it does without a migration: that one is waited for.
        let are_known = drafts.iter().all(|draft| self.book.state(&draft.name).is_some());
        if !drafts.is_empty() && are_known && matches!(self.keeper, Keeper::Kubernetes(_)) {
            let book = self.book.clone();
            let Some(translation) = self.translate(model.clone(), &book).await else { return };
            self.publish(translation, folder.clone());
        }
        let mut book = self.book.clone();
        drafts.iter().for_each(|draft| book.apply(draft));
        let Some(mut translation) = self.translate(model.clone(), &book).await else { return };
        if !drafts.is_empty() && !self.write_all(drafts, &translation, ordered_at).await {
            let book = self.book.clone();
            let Some(without) = self.translate(model, &book).await else { return };
            translation = without;
        }
        self.publish(translation, folder);
    }

    /// Writes down what the objects ask for. False: not all of it, and the rest is tried again.
    async fn write_all(
        &mut self,
        drafts: Vec<Draft>,
        translation: &Translation,
        ordered_at: Instant,
    ) -> bool {
        let mut unwritten = 0;
        let mut drafts = drafts.into_iter();
        loop {
            let some: Vec<Draft> = drafts.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            let written = join_all(some.iter().map(|draft| self.write(draft.clone(), translation))).await;
            let mut answers = true;
            for (draft, written) in some.into_iter().zip(written) {
                let (name, revision) = (&draft.name, draft.state.revision);
                match written {
                    Ok(()) => {
                        self.proxies.track(|tracker| tracker.ordered(name, revision, ordered_at));
                        self.book.apply(&draft);
                    }
                    Err(error) => {
                        unwritten += 1;
                        answers &= !matches!(error, LedgerError::Unanswered(_));
                        tracing::error!(
                            migration = %name, %error, "a change of the file waits: it cannot be written down"
                        );
                    }
                }
            }
            // Whoever waits for endpoints waits for one limit of time, not for one a change.
            if !answers {
                unwritten += drafts.len();
                break;
            }
        }
        let waited = self.retry.map(|(_, waited)| (waited * 2).min(MAX_RETRY));
        self.retry = (unwritten > 0).then(|| {
            let wait = waited.unwrap_or(RETRY);
            (Instant::now() + wait, wait)
        });
        unwritten == 0
    }

    /// Runs until `stop`, or until nothing can come any more.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.proxies.server.changes();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = reached(self.retry) => self.refresh().await,
                changed = self.sources.registry.changed() => match changed {
                    Ok(()) => self.refresh().await,
                    Err(_) => return tracing::error!("the registry has ended; what is published stays"),
                },
                changed = next(&mut self.sources.services) => match changed {
                    Ok(()) => self.refresh().await,
                    Err(_) => return tracing::error!("the watch of endpoints has ended; what is published stays"),
                },
                Ok(()) = next(&mut self.sources.leads) => self.refresh().await,
                Ok(()) = next(&mut self.sources.aside) => self.refresh().await,
                changed = self.sources.folder.changed() => match changed {
                    Ok(()) => self.refresh().await,
                    Err(_) => return tracing::error!("the objects' watcher has ended; what is published stays"),
                },
                command = self.sources.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                changed = changes.changed() => match changed {
                    Ok(()) => self.note_acknowledgements(),
                    Err(_) => return,
                },
            }
        }
    }

    async fn command(&mut self, command: Command) {
        let Command { name, order, token, at, reply } = command;
        let result = self.carry_out(name, order, token, at).await;
        // Whoever asked may have gone; the change is made all the same.
        let _ = reply.send(result);
    }

    async fn carry_out(
        &mut self,
        name: ObjectName,
        order: Order,
        token: Option<String>,
        at: Instant,
    ) -> Result<Done, CommandError> {
        let folder = self.sources.folder.borrow().clone();
        let registry = self.registry();
        let model = self.model(&folder, registry);
        let world = circumstances(&model, &name);
        let draft = self.book.order(&name, order, token, &folder.objects, world, Timestamp::now())?;
        let mut book = self.book.clone();
        book.apply(&draft);
        let translation = self.translate(model, &book).await.ok_or(CommandError::Compiler)?;
        let done = Done { changed: draft.record.is_some(), warnings: draft.warnings.clone() };
        let revision = draft.state.revision;
        self.write(draft, &translation).await?;
        self.book = book;
        if done.changed {
            self.proxies.track(|tracker| tracker.ordered(&name, revision, at));
        }
        self.publish(translation, folder);
        Ok(done)
    }

    /// Eureka's instances and the endpoints of Services. Both are taken as they are now, so neither is asked for again.
    fn registry(&mut self) -> Arc<RegistryView> {
        let registered = self.sources.registry.borrow_and_update().clone();
        let Some(services) = &mut self.sources.services else { return registered };
        let services = services.borrow_and_update().clone();
        Arc::new(RegistryView { applications: registered.applications.clone(), services })
    }

    fn model(&self, folder: &Loaded, registry: Arc<RegistryView>) -> Model {
        Model {
            objects: folder.objects.clone(),
            registry,
            migrations: self.in_model.clone(),
            addresses: self.assigner.in_model.clone(),
            in_pods: self.sources.in_pods,
        }
    }

    /// Compiles and encodes `model` as it is with the states of `book`. None where that failed, which is a
    /// fault of ours: what is published stays then.
    async fn translate(&mut self, mut model: Model, book: &Book) -> Option<Translation> {
        let in_model = book.in_model();
        if *self.in_model != in_model {
            self.in_model = Arc::new(in_model);
        }
        model.migrations = self.in_model.clone();
        let translation = self.compile(model).await?;
        if !self.assigner.assign(&translation.compiled.services).await {
            return Some(translation);
        }
        // Services that are new have an address only now.
        let addresses = self.assigner.in_model.clone();
        self.compile(Model { addresses, ..translation.model }).await
    }

    async fn compile(&mut self, model: Model) -> Option<Translation> {
        let mut compiler = std::mem::take(&mut self.compiler);
        // Pure, but not short on a large system: it runs where it holds up nobody else.
        let translated = tokio::task::spawn_blocking(move || {
            let compiled = Arc::new(compiler.compile(&model));
            (compiler, Translation { model, compiled })
        });
        match translated.await {
            Ok((compiler, translation)) => {
                self.compiler = compiler;
                Some(translation)
            }
            Err(error) => {
                tracing::error!(%error, "the compiler failed; what is published stays");
                None
            }
        }
    }

    /// Writes a draft down, with the version of the configuration that carries it.
    async fn write(&self, mut draft: Draft, translation: &Translation) -> Result<(), LedgerError> {
        if let Some(record) = &mut draft.record {
            record.config = version_of(&translation.compiled, &draft.name);
        }
        let entry = self.keeper.write(draft).await?;
        if let Some(entry) = entry {
            let line = serde_json::to_string(&entry)?;
            tracing::info!(target: "audit", %line, "migration changed");
        }
        Ok(())
    }

    fn publish(&mut self, translation: Translation, folder: Loaded) {
        let Translation { model, compiled } = translation;
        let (before, folder_before) = {
            let world = self.world.borrow();
            (world.compiled.clone(), world.folder.clone())
        };
        if !Arc::ptr_eq(&before.statuses, &compiled.statuses) {
            for object in compiled.statuses.changed(&before.statuses) {
                let known = problems_of(&folder_before, object, before.statuses.of(object));
                let found = problems_of(&folder, object, compiled.statuses.of(object));
                for problem in found.iter().filter(|problem| !known.contains(problem)) {
                    tracing::warn!(reason = problem.reason, "{problem}");
                }
            }
        }
        for (view, snapshot) in &compiled.views {
            self.proxies.server.publish(view, snapshot.clone());
        }
        for view in before.views.keys().filter(|view| !compiled.views.contains_key(*view)) {
            self.proxies.server.remove_view(view);
        }
        let book = Arc::new(self.book.clone());
        self.world.send_replace(Arc::new(World { model, compiled, book, folder }));
        self.note_acknowledgements();
    }

    /// Stops the clock of changes that are in force now.
    fn note_acknowledgements(&self) {
        let world = self.world.borrow().clone();
        for name in self.proxies.track(|tracker| tracker.waiting()) {
            if let Some(state) = world.book.state(&name) {
                world.note(&name, state, &self.proxies);
            }
        }
    }
}

#[cfg(test)]
mod tests;
