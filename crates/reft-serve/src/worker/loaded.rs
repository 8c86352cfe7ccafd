use std::collections::HashMap;
use std::rc::Rc;

use reft_methods::{adapter_bytes, adapters_in, has_head, is_in_weights, load_adapters};
use reft_models::{Adapter, AdapterStack, Model, StackEntry};

use crate::api::error::ApiError;
use crate::worker::generation::{Generation, Used};

/// The adapters that are in memory, by their generations.
pub(crate) struct LoadedAdapters {
    /// Most bytes of adapters that no request in flight uses.
    most_bytes: usize,
    loaded: HashMap<u64, Loaded>,
    /// Counts uses, to find the least recently used adapter.
    clock: u64,
}

struct Loaded {
    /// Several, if the directory holds several.
    adapters: Vec<Rc<dyn Adapter>>,
    /// Bytes of its files, which hold little else than its tensors.
    bytes: usize,
    last_used: u64,
}

impl LoadedAdapters {
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self { most_bytes, loaded: HashMap::new(), clock: 0 }
    }

    /// How many there are, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.loaded.len(), self.loaded.values().map(|loaded| loaded.bytes).sum())
    }

    /// The stack of a request's adapters, which are read if they are not in memory.
    ///
    /// # Errors
    /// If an adapter cannot be read, or the adapters cannot be used together.
    pub(crate) fn stack(
        &mut self,
        model: &dyn Model,
        used: &[Used],
    ) -> Result<AdapterStack<'static>, ApiError> {
        let mut entries = Vec::new();
        for Used { generation, strength, subspace } in used {
            for adapter in self.get(model, generation)? {
                let entry = StackEntry::from(adapter);
                entries.push(StackEntry {
                    strength: *strength,
                    subspace: subspace.clone(),
                    ..entry
                });
            }
        }
        let stack = AdapterStack::new(entries).map_err(|refused| {
            ApiError::invalid(format!("these adapters cannot be used so: {refused}"))
                .of_field("reft.adapters")
        })?;
        self.make_room();
        Ok(stack)
    }

    /// For each adapter the number of coordinates of the subspace that it edits; `None` without a subspace.
    ///
    /// # Errors
    /// As [`Self::stack`].
    pub(crate) fn subspaces(
        &mut self,
        model: &dyn Model,
        used: &[Used],
    ) -> Result<Vec<Option<i64>>, ApiError> {
        let size = |used: &Used| {
            let adapters = self.get(model, &used.generation)?;
            Ok(adapters.iter().find_map(|adapter| adapter.subspace_size()))
        };
        used.iter().map(size).collect()
    }

    /// An adapter, which is read if it is not in memory.
    ///
    /// # Errors
    /// If it cannot be read, belongs to another model, or is the model's weights.
    pub(crate) fn get(
        &mut self,
        model: &dyn Model,
        generation: &Generation,
    ) -> Result<Vec<Rc<dyn Adapter>>, ApiError> {
        self.clock += 1;
        if let Some(loaded) = self.loaded.get_mut(&generation.id) {
            loaded.last_used = self.clock;
            return Ok(loaded.adapters.clone());
        }
        let name = &generation.name;
        let directory = &generation.directory;
        let failed = |refused: reft_methods::Error| ApiError::adapter(generation, &refused);
        let methods = adapters_in(directory).map_err(failed)?;
        // checked before the adapter is read, since reading it would change the model's weights
        if let Some((_, method)) = methods.iter().find(|(_, method)| is_in_weights(method)) {
            let method = method.name;
            return Err(ApiError::invalid(format!(
                "adapter {name} of method {method} is the model's weights, which all requests share; merge it with `reft export` and serve the merged model"
            ))
            .of_field("model"));
        }
        if has_head(directory).map_err(failed)? {
            log::warn!(
                "adapter {name} has a head, which is not served; `reft eval --task classification`, `regression` or `reward` uses it"
            );
        }
        let read =
            load_adapters(directory, model).and_then(|read| Ok((read, adapter_bytes(directory)?)));
        let (read, bytes) = read.map_err(failed)?;
        let adapters: Vec<Rc<dyn Adapter>> = read.into_iter().map(Rc::from).collect();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        // an adapter that has lost its name is not kept: only earlier requests use it
        if generation.has_a_name() {
            let loaded = Loaded { adapters: adapters.clone(), bytes, last_used: self.clock };
            self.loaded.insert(generation.id, loaded);
        }
        Ok(adapters)
    }

    /// Forgets one. Stacks that have it keep it alive.
    pub(crate) fn forget(&mut self, generation: &Generation) {
        generation.forget();
        self.loaded.remove(&generation.id);
    }

    /// Drops the least recently used adapters that no request uses, until the others fit.
    pub(crate) fn make_room(&mut self) {
        let is_idle =
            |loaded: &Loaded| loaded.adapters.iter().all(|adapter| Rc::strong_count(adapter) == 1);
        while self.size().1 > self.most_bytes {
            let idle = self.loaded.iter().filter(|(_, loaded)| is_idle(loaded));
            let Some((&oldest, _)) = idle.min_by_key(|(_, loaded)| loaded.last_used) else {
                return;
            };
            self.loaded.remove(&oldest);
        }
    }
}
