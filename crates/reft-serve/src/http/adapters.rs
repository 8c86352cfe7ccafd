//! Loading and unloading of adapters.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::api::error::ApiError;
use crate::api::request::{Body, object};
use crate::http::generate::json as answer;
use crate::http::shared::Shared;
use crate::worker::job::Command;

/// Reads an adapter and gives it its name. Until then the name stays with the adapter that had it.
///
/// # Errors
/// If loading is off, the name is taken and `load_inplace` is not asked for, or the adapter cannot be used.
pub(crate) async fn load(shared: Arc<Shared>, body: &[u8]) -> Result<Response, ApiError> {
    allowed(&shared)?;
    shared.ready()?;
    let body = fields(body, &["lora_name", "lora_path", "load_inplace"])?;
    let name = required(&body, "lora_name")?;
    let path = required(&body, "lora_path")?;
    let replaces = body.flag("load_inplace")?;
    let _alone = shared.changes.lock().await;
    if shared.catalogue.has(&name) && !replaces {
        let message = format!(
            "there is an adapter called {name}; unload it, or replace it with \"load_inplace\": true"
        );
        return Err(ApiError::conflict(message).of_field("lora_name"));
    }
    let generation = Arc::new(shared.catalogue.candidate(&name, &path)?);
    let (sender, loaded) = oneshot::channel();
    shared.send(Command::Load(Arc::clone(&generation), sender))?;
    loaded.await.map_err(|_| ApiError::shutting_down())??;
    if let Some(earlier) = shared.catalogue.put(&generation) {
        shared.send(Command::Forget(earlier))?;
    }
    Ok(answer(&json!({"id": name, "object": "model", "parent": shared.catalogue.base()})))
}

/// Takes an adapter out. Requests in flight finish with it.
///
/// # Errors
/// If loading is off, or there is no such adapter.
pub(crate) async fn unload(shared: Arc<Shared>, name: &str) -> Result<Response, ApiError> {
    allowed(&shared)?;
    shared.ready()?;
    let _alone = shared.changes.lock().await;
    if let Some(generation) = shared.catalogue.take(name)? {
        shared.send(Command::Forget(generation))?;
    }
    Ok(answer(&json!({"id": name, "object": "model", "deleted": true})))
}

/// The name in a body that asks for an adapter to be unloaded.
///
/// # Errors
/// If the body has no name.
pub(crate) fn name_in(body: &[u8]) -> Result<String, ApiError> {
    required(&fields(body, &["lora_name", "lora_int_id"])?, "lora_name")
}

fn allowed(shared: &Shared) -> Result<(), ApiError> {
    if shared.options.allows_loading {
        return Ok(());
    }
    let message =
        "adapters are not loaded and unloaded by clients here; start the server with --allow-load";
    Err(ApiError::forbidden(message))
}

fn fields(body: &[u8], known: &[&str]) -> Result<Body, ApiError> {
    let body: Map<String, Value> = object(body)?;
    match body.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(Body(body)),
        Some(other) => {
            let message = format!("{other} is no field here; use {}", known.join(", "));
            Err(ApiError::invalid(message).of_field(other.as_str()))
        }
    }
}

fn required(body: &Body, name: &str) -> Result<String, ApiError> {
    let missing = || ApiError::invalid(format!("{name} is missing; give it")).of_field(name);
    body.text(name)?.filter(|text| !text.is_empty()).ok_or_else(missing)
}
