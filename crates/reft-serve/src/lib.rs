//! An HTTP server in OpenAI's language: one model, many adapters, each request its own.
