//! Values of Secrets, read by `get` alone, in the namespace of the object that names them.
