use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

use crate::api::error::ApiError;

/// The page with its style and its script in it: one file.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let page = include_str!("page.html").replace("STYLE", include_str!("page.css"));
    page.replace("SCRIPT", include_str!("page.js"))
});
/// The placeholder of the nonce, which is new for each page: only the page's own script and styles carry it.
const NONCE: &str = "NONCE";

/// The page for trying adapters. It may load nothing from elsewhere, and may connect only to this server.
pub(crate) async fn page() -> Result<Response, ApiError> {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::from_str(&policy).map_err(|_| ApiError::failed())?;
    let mut response = Html(PAGE.replace(NONCE, &nonce)).into_response();
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::PAGE;

    #[test]
    fn the_page_needs_nothing_and_sets_texts_as_texts() {
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "://",
            "src=",
            "href=",
            "style=\"",
            "onclick=",
        ] {
            assert!(!PAGE.contains(word), "{word}");
        }
        assert_eq!(PAGE.matches("nonce=\"NONCE\"").count(), 2);
        assert!(PAGE.contains("textContent") && PAGE.contains("color-scheme"));
    }
}
