//! What runs inside the operator's Jobs: `memoria-operator job`, reading its order from the environment and answering
//! by the termination message. No Kubernetes client in here: Jobs carry no token.

pub mod check;
pub mod manifest;
pub mod protocol;
