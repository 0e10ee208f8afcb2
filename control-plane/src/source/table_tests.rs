//! docs/config-fields.md against the code: every row does what it says, and nothing is missing.

use std::{cell::RefCell, collections::BTreeSet};

use serde::{
    Deserialize,
    de::{self, IntoDeserializer, Visitor, value::Error},
    forward_to_deserialize_any,
};
use serde_norway::Value;

use super::{
    load_text,
    schema::{EVERY_KIND, Fate, Node, Row, SCHEMA},
    table_examples::{AROUND, BESIDE, BESIDE_BALANCER, BESIDE_SECURITY, OBJECTS, ROUTES, SUBSETS},
};
use crate::{
    class::ClientClass,
    compile::{CompileOptions, compile},
    diagnostic::{Diagnostic, IGNORED_FIELD, REJECTED_FIELD, Severity},
    model::{
        AuthorizationPolicy, BalancerPolicy, DestinationRule, EndpointSlice, HedgePolicy,
        MeshPolicy, Metadata, PeerAuthentication, RateLimit, RequestAuthentication, Service,
        ServiceEntry, ServiceIntentions, ServiceResolver, ServiceRouter, ServiceSplitter, Sidecar,
        VirtualService, WorkloadEntry,
        gateway::{BackendTrafficPolicy, GrpcRoute, HttpRoute, ReferenceGrant},
    },
};

/// What must stand in a filter beside a field of it: path and value.
fn beside_in_filter(path: &str) -> Vec<(String, &'static str)> {
    let (field, inside) = path.split_once('.').unwrap_or((path, ""));
    let (kind, field) = match field {
        "requestHeaderModifier" | "type" => ("RequestHeaderModifier", "requestHeaderModifier"),
        "responseHeaderModifier" => ("ResponseHeaderModifier", field),
        "requestMirror" => ("RequestMirror", field),
        "requestRedirect" => ("RequestRedirect", field),
        "urlRewrite" => ("URLRewrite", field),
        "cors" => ("CORS", field),
        _ => return Vec::new(),
    };
    let inner: &[(&str, &str)] = match inside {
        "set[].value" => &[("set[].name", "x")],
        inside if kind == "CORS" && inside != "allowOrigins[]" => &[("allowOrigins[]", "a")],
        "add[].value" => &[("add[].name", "x")],
        "path.type" | "path.replaceFullPath" => &[
            ("path.type", "ReplaceFullPath"),
            ("path.replaceFullPath", "/"),
        ],
        "path.replacePrefixMatch" => &[("path.type", "ReplacePrefixMatch")],
        "" if kind == "RequestHeaderModifier" => &[("remove", "[x]")],
        inside if kind == "RequestMirror" => match inside {
            "fraction.denominator" => &[
                ("fraction.numerator", "1"),
                ("backendRef.name", "svc"),
                ("backendRef.port", "8080"),
            ],
            _ => &[("backendRef.name", "svc"), ("backendRef.port", "8080")],
        },
        _ => &[],
    };
    let inner = inner.iter();
    let inner = inner.map(|(inside, value)| (format!("{field}.{inside}"), *value));
    inner.chain([("type".to_owned(), kind)]).collect()
}

/// Writes `value` at `path`, with the first item of lists and some key of maps; where that is.
fn write(at: &mut Value, path: &str, value: Value) -> String {
    let (mut at, mut place) = (at, String::new());
    for part in path.split('.') {
        let (name, inside) = part.split_at(part.find(['[', '{']).unwrap_or(part.len()));
        if !at.is_mapping() {
            *at = Value::Mapping(Default::default());
        }
        place.push_str(if place.is_empty() { "" } else { "." });
        place.push_str(name);
        at = at
            .as_mapping_mut()
            .unwrap()
            .entry(name.into())
            .or_insert(Value::Null);
        match inside {
            "[]" => {
                if !at.is_sequence() {
                    *at = Value::Sequence(vec![Value::Null]);
                }
                place.push_str("[0]");
                at = &mut at.as_sequence_mut().unwrap()[0];
            }
            "{}" => {
                let key = match name {
                    "portLevelMtls" => "8080",
                    "ports" => "http",
                    _ => "x",
                };
                if !at.is_mapping() {
                    *at = Value::Mapping(Default::default());
                }
                place = format!("{place}.{key}");
                at = at
                    .as_mapping_mut()
                    .unwrap()
                    .entry(key.into())
                    .or_insert(Value::Null);
            }
            _ => {}
        }
    }
    *at = value;
    place
}

/// What a field of TLS is of use with.
fn beside_in_tls(path: &str, example: &str) -> &'static [(&'static str, &'static str)] {
    match path {
        "mode" if example != "MUTUAL" => &[],
        "caCertificates" => &[("mode", "SIMPLE")],
        "clientCertificate" => &[("mode", "MUTUAL"), ("privateKey", "/b.pem")],
        "privateKey" => &[("mode", "MUTUAL"), ("clientCertificate", "/b.pem")],
        "mode" => &[("clientCertificate", "/a.pem"), ("privateKey", "/b.pem")],
        _ => &[],
    }
}

/// The findings, and the classes that do not honour the example, when it stands in an object.
fn try_row(row: &Row) -> (String, Vec<Diagnostic>, Vec<String>) {
    let (kind, prefix) = match row.section.as_str() {
        EVERY_KIND => ("VirtualService", ""),
        "StringMatch" => ("VirtualService", "spec.http[].match[].uri."),
        "TrafficPolicy" => ("DestinationRule", "spec.trafficPolicy."),
        "LoadBalancer" => ("DestinationRule", "spec.trafficPolicy.loadBalancer."),
        "ConnectionPool" => ("DestinationRule", "spec.trafficPolicy.connectionPool."),
        "OutlierDetection" => ("DestinationRule", "spec.trafficPolicy.outlierDetection."),
        "ClientTls" => ("DestinationRule", "spec.trafficPolicy.tls."),
        "RouteFilter" => ("HTTPRoute", "spec.rules[].filters[]."),
        kind => (kind, ""),
    };
    let (_, text) = OBJECTS
        .iter()
        .find(|(known, _)| *known == kind)
        .expect(kind);
    let mut object: Value = serde_norway::from_str(text).unwrap();
    object["kind"] = kind.into();
    for (part, path, value) in BESIDE {
        // Another predicate takes the place of the one here.
        let is_other = ["present", "prefix", "suffix", "regex"]
            .iter()
            .any(|other| row.path.ends_with(other));
        let is_meant = row.path.contains(part) && !(is_other && path.ends_with("exact"));
        if ROUTES.contains(&kind) && is_meant {
            write(&mut object, path, serde_norway::from_str(value).unwrap());
        }
    }
    if kind == "HedgePolicy" && row.path == "spec.minDelay" {
        write(&mut object, "spec.percentile", Value::from(95));
    }
    if row.path == "spec.deterministicSubset" {
        write(&mut object, "spec.subsetSize", Value::from(3));
    }
    for (of_kind, part, path, value) in BESIDE_SECURITY {
        let is_meant = row.path.contains(part) && row.path != path;
        let is_other = path.ends_with("jwks") && row.path.ends_with("jwksUri")
            || path.ends_with("exact")
                && !row.path.ends_with(".name")
                && !row.path.ends_with("invert");
        if of_kind == kind && is_meant && !is_other {
            write(&mut object, path, serde_norway::from_str(value).unwrap());
        }
    }
    if row.section == "RouteFilter" {
        for (path, value) in beside_in_filter(&row.path) {
            let value = serde_norway::from_str(value).unwrap();
            write(&mut object, &format!("{prefix}{path}"), value);
        }
    }
    for (_, path, value) in BESIDE_BALANCER
        .iter()
        .filter(|(part, ..)| row.section == "LoadBalancer" && row.path.starts_with(part))
    {
        let value = serde_norway::from_str(value).unwrap();
        write(&mut object, &format!("{prefix}{path}"), value);
    }
    if row.section == "ClientTls" {
        for (path, value) in beside_in_tls(&row.path, &row.example) {
            write(&mut object, &format!("{prefix}{path}"), Value::from(*value));
        }
    }
    let example = serde_norway::from_str(&row.example).unwrap();
    let place = write(&mut object, &format!("{prefix}{}", row.path), example);
    let subsets = if ROUTES.contains(&kind) || kind == "BalancerPolicy" {
        SUBSETS
    } else {
        ""
    };
    let own = serde_norway::to_string(&object).unwrap();
    let loaded = load_text("t.yaml", &format!("{AROUND}{subsets}---\n{own}"));
    let (_, found) = compile(&loaded.objects, &CompileOptions::default());
    let all_classes = ClientClass::ALL.into_iter().collect();
    let limits = loaded
        .objects
        .values()
        .flat_map(|object| object.limits_for(&all_classes));
    let limits = limits
        .filter(|limit| limit.field == place)
        .map(|limit| limit.message);
    // The objects around may say the same in the same place.
    let limits: BTreeSet<String> = limits.collect();
    let limits = limits.into_iter().collect();
    (
        place,
        loaded.diagnostics.into_iter().chain(found).collect(),
        limits,
    )
}

#[test]
fn every_row_does_what_it_says() {
    for row in &SCHEMA.rows {
        if row.example.is_empty() {
            let has_inside = row.link.is_some() || row.section == EVERY_KIND;
            assert!(has_inside, "{row:?} has no example");
            continue;
        }
        let (place, found, limits) = try_row(row);
        let is_ours = |finding: &&Diagnostic| finding.field == place;
        match &row.fate {
            Fate::Honoured => assert!(found.is_empty() && limits.is_empty(), "{row:?}: {found:?}"),
            Fate::HonouredFor(classes) => {
                assert!(found.is_empty(), "{row:?}: {found:?}");
                let [limit] = &limits[..] else {
                    panic!("{row:?}: {limits:?}")
                };
                for class in ClientClass::ALL {
                    let is_named = limit.contains(class.as_str());
                    assert_ne!(is_named, classes.contains(&class), "{row:?}: {limit}");
                }
            }
            Fate::Ignored => {
                let [finding] = &found[..] else {
                    panic!("{row:?}: {found:?}")
                };
                assert_eq!(
                    (finding.code, &finding.field),
                    (IGNORED_FIELD, &place),
                    "{row:?}"
                );
                assert_eq!(finding.severity, Severity::Warning);
            }
            Fate::Rejected => {
                let ours = found
                    .iter()
                    .find(is_ours)
                    .unwrap_or_else(|| panic!("{row:?}: {found:?}"));
                assert_eq!(
                    (ours.code, ours.severity),
                    (REJECTED_FIELD, Severity::Error)
                );
            }
        }
    }
}

/// The node at a path of the model.
fn find<'s>(section: &str, path: &str) -> Option<&'s Node> {
    let mut node = SCHEMA.section(section)?;
    for part in path.split('.') {
        let (name, inside) = part.split_at(part.find(['[', '{']).unwrap_or(part.len()));
        if let Some(link) = &node.link {
            node = SCHEMA.section(link)?;
        }
        node = node.fields.get(name)?;
        node = match inside {
            "[]" => node.items.as_deref()?,
            "{}" => node.entries.as_deref()?,
            _ => node,
        };
    }
    Some(node)
}

/// Every field of a type and of what is in it, as paths.
fn fields_of<'de, T: Deserialize<'de>>(prefix: &str) -> BTreeSet<String> {
    let found = RefCell::default();
    let probe = Probe {
        path: prefix.to_owned(),
        found: &found,
    };
    T::deserialize(probe).unwrap_or_else(|error| panic!("{prefix}: {error}"));
    found.into_inner()
}

#[test]
fn the_model_and_the_page_have_the_same_fields() {
    let model = [
        (EVERY_KIND, fields_of::<Metadata>("metadata")),
        ("Service", fields_of::<Service>("spec")),
        ("EndpointSlice", fields_of::<EndpointSlice>("")),
        ("ServiceEntry", fields_of::<ServiceEntry>("spec")),
        ("WorkloadEntry", fields_of::<WorkloadEntry>("spec")),
        ("BalancerPolicy", fields_of::<BalancerPolicy>("spec")),
        ("VirtualService", fields_of::<VirtualService>("spec")),
        ("HTTPRoute", fields_of::<HttpRoute>("spec")),
        ("GRPCRoute", fields_of::<GrpcRoute>("spec")),
        (
            "XBackendTrafficPolicy",
            fields_of::<BackendTrafficPolicy>("spec"),
        ),
        ("Sidecar", fields_of::<Sidecar>("spec")),
        ("ReferenceGrant", fields_of::<ReferenceGrant>("spec")),
        ("ServiceRouter", fields_of::<ServiceRouter>("spec")),
        ("ServiceSplitter", fields_of::<ServiceSplitter>("spec")),
        ("ServiceResolver", fields_of::<ServiceResolver>("spec")),
        ("DestinationRule", fields_of::<DestinationRule>("spec")),
        ("HedgePolicy", fields_of::<HedgePolicy>("spec")),
        ("RateLimit", fields_of::<RateLimit>("spec")),
        (
            "PeerAuthentication",
            fields_of::<PeerAuthentication>("spec"),
        ),
        (
            "AuthorizationPolicy",
            fields_of::<AuthorizationPolicy>("spec"),
        ),
        (
            "RequestAuthentication",
            fields_of::<RequestAuthentication>("spec"),
        ),
        ("ServiceIntentions", fields_of::<ServiceIntentions>("spec")),
        ("MeshPolicy", fields_of::<MeshPolicy>("spec")),
    ];
    let mut kinds: Vec<_> = model.iter().map(|(kind, _)| *kind).skip(1).collect();
    kinds.sort_unstable();
    assert_eq!(SCHEMA.kinds().collect::<Vec<_>>(), kinds);
    for (section, paths) in &model {
        for path in paths {
            assert!(
                find(section, path).is_some(),
                "{section} has no row for {path}"
            );
        }
    }
    let is_in_model = |row: &Row| {
        model
            .iter()
            .any(|(section, paths)| match row.section.as_str() {
                "StringMatch" | "TrafficPolicy" | "RouteFilter" | "LoadBalancer"
                | "ConnectionPool" | "OutlierDetection" | "ClientTls" => {
                    let inside = row.path.trim_end_matches(['[', ']', '{', '}']);
                    let inside = format!(".{inside}");
                    paths.iter().any(|path| path.ends_with(&inside))
                }
                own => {
                    let path = row.path.trim_end_matches(['[', ']', '{', '}']);
                    own == *section && paths.contains(path)
                }
            })
    };
    for row in &SCHEMA.rows {
        let is_honoured = matches!(row.fate, Fate::Honoured | Fate::HonouredFor(_));
        if is_honoured && !row.note.starts_with("nothing to do: ") {
            assert!(is_in_model(row), "{row:?} is not in the model");
        }
    }
}

/// Pretends to hold one of everything, and notes which fields are asked for.
struct Probe<'f> {
    path: String,
    found: &'f RefCell<BTreeSet<String>>,
}

impl Probe<'_> {
    fn inside(&self, part: &str) -> Self {
        Self {
            path: format!("{}{part}", self.path),
            found: self.found,
        }
    }
}

impl<'de> de::Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("1")
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u16(1)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u32(1)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(1)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_f64(1.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(true)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Once(Some(self.inside("[]")), Vec::new()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Once(Some(self.inside("{}")), vec!["1"]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Fields {
            probe: self,
            left: fields.iter(),
            at: "",
        })
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u128 f32 char str string bytes byte_buf unit unit_struct
        newtype_struct tuple tuple_struct enum identifier ignored_any
    }
}

/// One item, or one entry.
struct Once<'f>(Option<Probe<'f>>, Vec<&'static str>);

impl<'de> de::SeqAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_element_seed<S: de::DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        self.0
            .take()
            .map(|probe| seed.deserialize(probe))
            .transpose()
    }
}

impl<'de> de::MapAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_key_seed<S: de::DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        self.1
            .pop()
            .map(|key| seed.deserialize(key.into_deserializer()))
            .transpose()
    }

    fn next_value_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self.0.take().unwrap())
    }
}

/// Every field of a struct.
struct Fields<'f> {
    probe: Probe<'f>,
    left: std::slice::Iter<'static, &'static str>,
    at: &'static str,
}

impl<'de> de::MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<S: de::DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let Some(name) = self.left.next() else {
            return Ok(None);
        };
        self.at = name;
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let dot = if self.probe.path.is_empty() { "" } else { "." };
        let inside = self.probe.inside(&format!("{dot}{}", self.at));
        self.probe.found.borrow_mut().insert(inside.path.clone());
        seed.deserialize(inside)
    }
}
