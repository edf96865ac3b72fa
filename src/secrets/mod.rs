//! Values of Secrets, read by `get` alone, in the namespace of the object that names them.
//!
//! The controller, which verifies, and the delivery pods, which send, read them
//! through the same code: what one of them takes the other takes too.

pub mod material;
pub mod reader;

pub use material::Material;
pub use reader::{
    HEADER_VALUE_BYTES_MAX, ReadValue, SecretError, SecretReader, URL_BYTES_MAX, Use, pem_of, text_of, value_of,
};
