//! The serving side over real sockets: mutual TLS, authorisation, deadlines, life cycle, telemetry.

mod authorization;
mod before_tls;
mod chains;
mod client_cert;
mod deadline;
mod domains;
mod external;
mod filters;
mod kit;
mod lifecycle;
mod limits;
mod mutual_tls;
mod refusals;
mod routes;
mod secrets;
mod telemetry;
