//! What the stand-in's API server keeps and answers: objects by their path, with what Kubernetes lets whom do to them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// The taint of a node on which Cilium is not up yet.
const AGENT_NOT_READY: &str = "node.cilium.io/agent-not-ready";

/// Who asks, by the client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// No certificate, or one that this cluster did not sign.
    Nobody,
    /// The kubelet of this node: `system:node:<name>`.
    Node(String),
    /// `system:admin`.
    Admin,
}

/// A status code and an object of Kubernetes.
pub(super) type Reply = (u16, Value);

/// The objects of one cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// etcd's members by node, and whether each is still a learner, which may not have company.
    pub members: BTreeMap<String, bool>,
    /// Whether Cilium's operator is there: it taints new nodes, and takes the taint away where Cilium is up.
    pub has_cilium: bool,
    /// How long a pod takes to end.
    pub grace: Duration,
    ending: Vec<(Instant, String)>,
}

/// A path of the API, taken apart.
struct Target<'a> {
    /// `/api/v1` or `/apis/<group>/<version>`.
    group: &'a str,
    namespace: Option<&'a str>,
    resource: &'a str,
    name: Option<&'a str>,
    part: Option<&'a str>,
}

impl<'a> Target<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let depth = if path.starts_with("/api/v1/") { 3 } else { 4 };
        let end = path.match_indices('/').nth(depth - 1)?.0;
        let group = &path[..end];
        if group != "/api/v1" && !group.starts_with("/apis/") {
            return None;
        }
        let mut words: Vec<&str> = path[end + 1..].split('/').collect();
        let mut namespace = None;
        if words.len() > 2 && words[0] == "namespaces" {
            namespace = Some(words[1]);
            words.drain(..2);
        }
        let mut words = words.into_iter();
        let target =
            Self { group, namespace, resource: words.next()?, name: words.next(), part: words.next() };
        words.next().is_none().then_some(target)
    }

    fn key(&self, name: &str) -> String {
        let within = self.namespace.map(|ns| format!("namespaces/{ns}/")).unwrap_or_default();
        format!("{}/{within}{}/{name}", self.group, self.resource)
    }
}

impl Cluster {
    /// The object at a path.
    pub fn get(&self, path: &str) -> Option<&Value> {
        self.objects.get(path)
    }

    /// All objects whose paths begin so.
    pub fn below(&self, prefix: &str) -> Vec<Value> {
        let within = self.objects.iter().filter(|(path, _)| path.starts_with(prefix));
        within.map(|(_, object)| object.clone()).collect()
    }

    /// Puts an object at a path, as an operator or a controller would.
    pub fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        let name = path.rsplit('/').next().unwrap_or_default();
        let target = Target::parse(path);
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let metadata = &mut object["metadata"];
        metadata["name"] = name.into();
        metadata["resourceVersion"] = self.version.to_string().into();
        if metadata["uid"].is_null() {
            metadata["uid"] = format!("00000000-0000-4000-8000-{:012}", self.version).into();
            metadata["creationTimestamp"] = "2024-01-01T00:00:00Z".into();
        }
        if let Some(target) = target {
            if let Some(namespace) = target.namespace {
                metadata["namespace"] = namespace.into();
            }
            let version = target.group.trim_start_matches("/apis/").trim_start_matches("/api/");
            object["apiVersion"] = version.into();
            object["kind"] = kind(target.resource).into();
        }
        self.objects.insert(path.to_owned(), object);
    }

    /// Takes an object away, as an operator would.
    pub fn remove(&mut self, path: &str) -> Option<Value> {
        let object = self.objects.remove(path)?;
        if let Some(node) = path.strip_prefix("/api/v1/nodes/") {
            // What K3s' controllers do when a Node goes: its password's secret, its member, its pods.
            self.objects.remove(&password_path(node));
            self.members.remove(node);
            self.objects.retain(|path, object| !is_pod_of(path, object, node));
        }
        Some(object)
    }

    /// Puts a pod on a node, owned by a `ReplicaSet` and with a label `app` of its name, ready to be evicted.
    pub fn put_pod(&mut self, namespace: &str, name: &str, node: &str) {
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-set"), "controller": true}]);
        let pod = json!({
            "metadata": {"labels": {"app": name}, "ownerReferences": owner},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "pause"}]},
            "status": {"phase": "Running"},
        });
        self.put(&format!("/api/v1/namespaces/{namespace}/pods/{name}"), pod);
    }

    /// Puts a `PodDisruptionBudget` over the pods with this label `app`, which allows so many to be taken away.
    pub fn put_budget(&mut self, namespace: &str, app: &str, allowed: u32) {
        let budget = json!({"spec": {"selector": {"matchLabels": {"app": app}}}, "status": {"disruptionsAllowed": allowed}});
        self.put(&format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{app}"), budget);
    }

    /// Tells where the API is, as each server does.
    pub fn put_server(&mut self, address: SocketAddr) {
        let slice = json!({
            "endpoints": [{"addresses": [address.ip()]}], "ports": [{"name": "https", "port": address.port()}],
        });
        self.put("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes", slice);
    }

    /// Puts the Node of a server with a member of etcd, and whether it is up.
    pub fn put_member(&mut self, name: &str, is_ready: bool) {
        let status = if is_ready { "True" } else { "Unknown" };
        let labels =
            json!({"node-role.kubernetes.io/control-plane": "true", "node-role.kubernetes.io/etcd": "true"});
        let status = json!({"conditions": [{"type": "Ready", "status": status}]});
        self.put(&format!("/api/v1/nodes/{name}"), json!({"metadata": {"labels": labels}, "status": status}));
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Vec<&str> {
        self.objects.keys().filter_map(|path| path.strip_prefix("/api/v1/nodes/")).collect()
    }

    /// Whether a node's condition Ready is True.
    pub fn is_ready(&self, node: &str) -> bool {
        let conditions =
            self.get(&format!("/api/v1/nodes/{node}")).and_then(|n| n["status"]["conditions"].as_array());
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    }

    /// All objects, to be kept over a restart.
    pub fn save(&self) -> Value {
        json!({"objects": self.objects, "version": self.version, "members": self.members})
    }

    /// What was kept.
    pub fn load(kept: &Value) -> Self {
        let objects = kept["objects"].as_object().cloned().unwrap_or_default().into_iter().collect();
        let members = serde_json::from_value(kept["members"].clone()).unwrap_or_default();
        Self { objects, version: kept["version"].as_u64().unwrap_or_default(), members, ..Self::default() }
    }

    /// Checks a node's password against its secret, and makes the secret when there is none; whether it may go on.
    pub(super) fn admits(&mut self, node: &str, password: &str) -> bool {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let hash = STANDARD.encode(Sha256::digest(password.as_bytes()));
        let path = password_path(node);
        if let Some(secret) = self.get(&path) {
            return secret["data"]["hash"] == hash.as_str();
        }
        self.put(&path, json!({"type": "Opaque", "immutable": true, "data": {"hash": hash}}));
        true
    }

    /// Answers a request of the API.
    pub(super) fn serve(&mut self, who: &User, method: &str, path: &str, query: &str, body: &str) -> Reply {
        self.end_pods();
        if *who == User::Nobody {
            return failure(401, "Unauthorized", "Unauthorized");
        }
        if path == "/version" {
            return (200, json!({"major": "1", "minor": "33", "gitVersion": "v1.33.5+k3s1"}));
        }
        let Some(target) = Target::parse(path) else {
            return failure(404, "NotFound", "the server could not find the requested resource");
        };
        let object = match body {
            "" => Value::Null,
            body => match serde_json::from_str(body) {
                Ok(object) => object,
                Err(_) => return failure(400, "BadRequest", "the body is not JSON"),
            },
        };
        if let Some(why) = self.forbids(who, method, &target, query, &object) {
            return failure(403, "Forbidden", &why);
        }
        match (method, target.name, target.part) {
            ("GET", None, None) => self.list(&target, query),
            ("POST", None, None) => {
                let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
                    return failure(422, "Invalid", "metadata.name: Required value");
                };
                self.create(&target.key(&name), object)
            }
            ("POST", Some(name), Some("eviction")) => self.evict(&target, name),
            (_, Some(name), _) => self.change(method, &target.key(name), object),
            _ => failure(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ),
        }
    }

    fn create(&mut self, key: &str, mut object: Value) -> Reply {
        if self.objects.contains_key(key) {
            let name = key.rsplit('/').next().unwrap_or_default();
            return failure(409, "AlreadyExists", &format!("\"{name}\" already exists"));
        }
        if self.has_cilium && key.starts_with("/api/v1/nodes/") {
            let taint = json!({"key": AGENT_NOT_READY, "effect": "NoExecute"});
            match object["spec"]["taints"].as_array_mut() {
                Some(taints) => taints.push(taint),
                None => object["spec"]["taints"] = json!([taint]),
            }
        }
        self.put(key, object);
        (201, self.objects[key].clone())
    }

    fn change(&mut self, method: &str, key: &str, change: Value) -> Reply {
        let Some(old) = self.objects.get(key).cloned() else {
            let mut words = key.rsplit('/');
            let (name, resource) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            return failure(404, "NotFound", &format!("{resource} \"{name}\" not found"));
        };
        let mut new = old.clone();
        match method {
            "GET" => return (200, old),
            "DELETE" if key.contains("/pods/") => {
                self.ending.push((Instant::now() + self.grace, key.to_owned()));
                return (200, old);
            }
            "DELETE" => {
                self.remove(key);
                let about = json!({"name": old["metadata"]["name"], "uid": old["metadata"]["uid"]});
                return (
                    200,
                    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": about}),
                );
            }
            "PATCH" => merge(&mut new, &change),
            "PUT" => new = change,
            _ => return failure(405, "MethodNotAllowed", "the server does not allow this method"),
        }
        let expected = &new["metadata"]["resourceVersion"];
        if !expected.is_null() && *expected != old["metadata"]["resourceVersion"] {
            let why =
                "the object has been modified; please apply your changes to the latest version and try again";
            return failure(409, "Conflict", why);
        }
        self.put(key, new);
        if let Some(node) = key.strip_prefix("/api/v1/nodes/") {
            self.leave_etcd(node, key);
            self.take_taint(key);
        }
        (200, self.objects[key].clone())
    }

    /// K3s' member controller: an annotation on the Node takes its member out of etcd and says so in another.
    fn leave_etcd(&mut self, node: &str, key: &str) {
        let annotations = &self.objects[key]["metadata"]["annotations"];
        if annotations["etcd.k3s.cattle.io/remove"] != "true" || !self.members.contains_key(node) {
            return;
        }
        self.members.remove(node);
        let mut object = self.objects[key].clone();
        let annotations = &mut object["metadata"]["annotations"];
        annotations["etcd.k3s.cattle.io/removed-node-name"] =
            annotations["etcd.k3s.cattle.io/node-name"].take();
        self.put(key, object);
    }

    /// Cilium's operator: where Cilium is up its taint goes.
    fn take_taint(&mut self, key: &str) {
        let mut object = self.objects[key].clone();
        let is_up = |all: &Vec<Value>| all.iter().any(|condition| condition["reason"] == "CiliumIsUp");
        if !self.has_cilium || !object["status"]["conditions"].as_array().is_some_and(is_up) {
            return;
        }
        if let Some(taints) = object["spec"]["taints"].as_array_mut() {
            taints.retain(|taint| taint["key"] != AGENT_NOT_READY);
            self.put(key, object);
        }
    }

    fn list(&self, target: &Target<'_>, query: &str) -> Reply {
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(key, object)| {
                Target::parse(key).is_some_and(|t| {
                    (t.group, t.resource) == (target.group, target.resource)
                        && (target.namespace.is_none() || t.namespace == target.namespace)
                }) && selects(query, object)
            })
            .map(|(_, object)| object)
            .collect();
        let version = target.group.trim_start_matches("/apis/").trim_start_matches("/api/");
        let metadata = json!({"resourceVersion": self.version.to_string()});
        let kind = format!("{}List", kind(target.resource));
        (200, json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": items}))
    }

    fn evict(&mut self, target: &Target<'_>, name: &str) -> Reply {
        let key = target.key(name);
        let Some(pod) = self.objects.get(&key) else {
            return failure(404, "NotFound", &format!("pods \"{name}\" not found"));
        };
        if self.ending.iter().any(|(_, ending)| *ending == key) {
            return success();
        }
        let budgets = format!("/apis/policy/v1/namespaces/{}/", target.namespace.unwrap_or_default());
        let labels = pod["metadata"]["labels"].clone();
        let over = |(path, budget): &(&String, &mut Value)| {
            let wanted = budget["spec"]["selector"]["matchLabels"].as_object();
            path.starts_with(&budgets) && wanted.is_some_and(|all| all.iter().all(|(k, v)| labels[k] == *v))
        };
        for (path, budget) in self.objects.iter_mut().filter(over) {
            let allowed = budget["status"]["disruptionsAllowed"].as_u64().unwrap_or_default();
            if allowed == 0 {
                let budget = path.rsplit('/').next().unwrap_or_default();
                let mut status = failure(
                    429,
                    "TooManyRequests",
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                );
                let cause =
                    format!("The disruption budget {budget} needs 1 healthy pods and has 1 currently");
                status.1["details"] = json!({"causes": [{"reason": "DisruptionBudget", "message": cause}]});
                return status;
            }
            budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
        }
        self.ending.push((Instant::now() + self.grace, key));
        success()
    }

    fn end_pods(&mut self) {
        let now = Instant::now();
        let (over, still) = std::mem::take(&mut self.ending).into_iter().partition(|(end, _)| *end <= now);
        self.ending = still;
        let over: Vec<(Instant, String)> = over;
        for (_, key) in over {
            self.objects.remove(&key);
        }
    }

    /// Why a user may not: the Node authorizer with selectors, and the admission plugin `NodeRestriction`.
    fn forbids(
        &self,
        who: &User,
        method: &str,
        at: &Target<'_>,
        query: &str,
        body: &Value,
    ) -> Option<String> {
        let User::Node(node) = who else { return None };
        let no = |what: &str| {
            let resource = at.resource;
            Some(format!(
                "{resource} is forbidden: User \"system:node:{node}\" cannot {what} in API group \"\""
            ))
        };
        match (at.resource, method, at.name) {
            ("nodes", "GET", None) if query.contains(&format!("metadata.name%3D{node}")) => None,
            ("nodes", "GET", None) if query.contains(&format!("metadata.name={node}")) => None,
            ("nodes", "POST", None) if body["metadata"]["name"] == node.as_str() => None,
            ("nodes", "DELETE", _) => no("delete resource \"nodes\""),
            ("nodes", "PATCH" | "PUT", Some(name)) if name == node => {
                let old = self.objects.get(&at.key(name))?;
                let mut new = old.clone();
                if method == "PATCH" {
                    merge(&mut new, body);
                } else {
                    new = body.clone();
                }
                (new["spec"]["taints"] != old["spec"]["taints"]).then(|| {
                    format!("nodes \"{node}\" is forbidden: node \"{node}\" is not allowed to modify taints")
                })
            }
            ("nodes", "GET", Some(name)) if name == node => None,
            ("events", "POST", None) => None,
            ("pods", "GET", None) if query.replace("%3D", "=").contains(&format!("spec.nodeName={node}")) => {
                None
            }
            ("pods", "GET" | "DELETE" | "POST", Some(name)) => {
                let key = at.key(name);
                let is_own = self.objects.get(&key).is_none_or(|pod| is_pod_of(&key, pod, node));
                if is_own { None } else { no("touch pods of other nodes") }
            }
            _ => no(&format!("{} resource \"{}\"", method.to_lowercase(), at.resource)),
        }
    }
}

/// Where K3s keeps the hash of a node's password.
fn password_path(node: &str) -> String {
    format!("/api/v1/namespaces/kube-system/secrets/{node}.node-password.k3s")
}

fn is_pod_of(path: &str, object: &Value, node: &str) -> bool {
    path.contains("/pods/") && object["spec"]["nodeName"] == node
}

fn kind(resource: &str) -> &str {
    match resource {
        "nodes" => "Node",
        "pods" => "Pod",
        "secrets" => "Secret",
        "daemonsets" => "DaemonSet",
        "poddisruptionbudgets" => "PodDisruptionBudget",
        "helmcharts" => "HelmChart",
        "endpointslices" => "EndpointSlice",
        "events" => "Event",
        "ciliumnodes" => "CiliumNode",
        other => other,
    }
}

/// Whether an object is among those that a query's `fieldSelector` asks for.
fn selects(query: &str, object: &Value) -> bool {
    let query = query.replace("%3D", "=").replace("%2C", ",").replace("%21", "!");
    let Some(selector) = query.split('&').find_map(|part| part.strip_prefix("fieldSelector=")) else {
        return true;
    };
    selector.split(',').all(|term| {
        let (field, value) = term.split_once('=').unwrap_or((term, ""));
        object.pointer(&format!("/{}", field.replace('.', "/"))).is_some_and(|found| found == value)
    })
}

/// A merge patch (RFC 7396), and as strategic merge patches have it, a list of conditions is merged by their types.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().map(|object| object.remove(key));
        } else if let ("conditions", Some(items), Some(all)) =
            (key.as_str(), value.as_array(), into[key].as_array_mut())
        {
            for item in items {
                let at = all.iter().position(|old| old["type"] == item["type"]);
                match (at, item["$patch"] == "delete") {
                    (Some(at), true) => drop(all.remove(at)),
                    (Some(at), false) => merge(&mut all[at], item),
                    (None, is_gone) => all.extend((!is_gone).then(|| item.clone())),
                }
            }
        } else {
            merge(&mut into[key], value);
        }
    }
}

fn success() -> Reply {
    (201, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
}

/// A Status of Kubernetes that says no.
pub(super) fn failure(code: u16, reason: &str, message: &str) -> Reply {
    (
        code,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> User {
        User::Node(name.to_owned())
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for name in ["pi1", "pi2"] {
            let body = json!({"metadata": {"name": name, "labels": {"a": "b"}}}).to_string();
            assert_eq!(cluster.serve(&node(name), "POST", "/api/v1/nodes", "", &body).0, 201);
        }
        cluster
    }

    #[test]
    fn a_kubelet_may_do_to_its_own_node_what_kubernetes_lets_it_do() {
        let mut cluster = cluster();
        let mut ask = |who: &User, method, path, query, body| cluster.serve(who, method, path, query, body).0;
        let own = "/api/v1/nodes/pi1";
        assert_eq!(ask(&node("pi1"), "GET", own, "", ""), 200);
        assert_eq!(ask(&node("pi2"), "GET", own, "", ""), 403);
        assert_eq!(ask(&node("pi1"), "GET", "/api/v1/nodes", "", ""), 403);
        assert_eq!(ask(&node("pi1"), "GET", "/api/v1/nodes", "fieldSelector=metadata.name%3Dpi1", ""), 200);
        assert_eq!(ask(&node("pi1"), "PATCH", own, "", r#"{"spec": {"unschedulable": true}}"#), 200);
        assert_eq!(ask(&node("pi1"), "PATCH", own, "", r#"{"spec": {"taints": [{"key": "x"}]}}"#), 403);
        assert_eq!(ask(&node("pi1"), "DELETE", own, "", ""), 403);
        assert_eq!(ask(&User::Nobody, "GET", own, "", ""), 401);
        assert_eq!(ask(&User::Admin, "GET", "/api/v1/nodes/pi9", "", ""), 404);
        assert_eq!(ask(&User::Admin, "POST", "/api/v1/nodes", "", r#"{"metadata": {"name": "pi1"}}"#), 409);
        assert_eq!(ask(&User::Admin, "DELETE", own, "", ""), 200);
        assert_eq!(ask(&User::Admin, "GET", own, "", ""), 404);
    }

    #[test]
    fn a_node_takes_its_password_its_member_and_its_pods_along() {
        let mut cluster = cluster();
        assert!(cluster.admits("pi1", "secret") && cluster.admits("pi1", "secret"));
        assert!(!cluster.admits("pi1", "other"));
        cluster.members.insert("pi1".to_owned(), false);
        cluster.put_pod("default", "web", "pi1");
        cluster.put_pod("default", "db", "pi2");
        let mut kept = Cluster::load(&cluster.save());
        assert!(!kept.admits("pi1", "other"), "a restart forgets no password");
        cluster.serve(&User::Admin, "DELETE", "/api/v1/nodes/pi1", "", "");
        assert!(cluster.admits("pi1", "other") && cluster.members.is_empty());
        let (_, pods) = cluster.serve(&User::Admin, "GET", "/api/v1/pods", "", "");
        assert_eq!(pods["items"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn an_annotation_takes_a_member_out_of_etcd() {
        let mut cluster = cluster();
        cluster.members.insert("pi1".to_owned(), false);
        let patch = |text: &str| format!(r#"{{"metadata": {{"annotations": {text}}}}}"#);
        let named = patch(r#"{"etcd.k3s.cattle.io/node-name": "pi1-abc"}"#);
        cluster.serve(&User::Admin, "PATCH", "/api/v1/nodes/pi1", "", &named);
        assert_eq!(cluster.members.len(), 1);
        let remove = patch(r#"{"etcd.k3s.cattle.io/remove": "true"}"#);
        let (_, node) = cluster.serve(&User::Admin, "PATCH", "/api/v1/nodes/pi1", "", &remove);
        assert!(cluster.members.is_empty());
        assert_eq!(node["metadata"]["annotations"]["etcd.k3s.cattle.io/removed-node-name"], "pi1-abc");
    }

    #[test]
    fn a_new_node_is_tainted_until_cilium_is_up_on_it() {
        let mut cluster = Cluster { has_cilium: true, ..Cluster::default() };
        let path = "/api/v1/nodes/pi1";
        let (_, made) =
            cluster.serve(&node("pi1"), "POST", "/api/v1/nodes", "", r#"{"metadata": {"name": "pi1"}}"#);
        assert_eq!(made["spec"]["taints"][0]["key"], AGENT_NOT_READY);
        let status =
            r#"{"status": {"conditions": [{"type": "NetworkUnavailable", "reason": "CiliumIsUp"}]}}"#;
        let (code, _) = cluster.serve(&node("pi1"), "PATCH", &format!("{path}/status"), "", status);
        assert_eq!((code, &cluster.get(path).unwrap()["spec"]["taints"]), (200, &json!([])));
    }

    #[test]
    fn a_budget_holds_a_pod_until_it_allows_it_to_go() {
        let mut cluster = cluster();
        cluster.put_pod("default", "web", "pi1");
        cluster.put_budget("default", "web", 0);
        let eviction = "/api/v1/namespaces/default/pods/web/eviction";
        let (code, status) = cluster.serve(&node("pi1"), "POST", eviction, "", "{}");
        assert_eq!((code, status["reason"].as_str()), (429, Some("TooManyRequests")));
        assert_eq!(cluster.serve(&node("pi2"), "POST", eviction, "", "{}").0, 403);
        cluster.put_budget("default", "web", 1);
        cluster.grace = Duration::from_millis(30);
        assert_eq!(cluster.serve(&node("pi1"), "POST", eviction, "", "{}").0, 201);
        let mut pods = || {
            let query = "fieldSelector=spec.nodeName%3Dpi1";
            cluster.serve(&node("pi1"), "GET", "/api/v1/pods", query, "").1["items"].as_array().unwrap().len()
        };
        assert_eq!(pods(), 1, "it takes its time");
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(pods(), 0);
    }

    #[test]
    fn a_stale_write_is_a_conflict() {
        let mut cluster = cluster();
        let path = "/api/v1/nodes/pi1";
        let stale = cluster.get(path).unwrap().clone();
        let patch = r#"{"metadata": {"labels": {"a": null, "c": "d"}}}"#;
        let (_, node) = cluster.serve(&User::Admin, "PATCH", path, "", patch);
        assert_eq!(node["metadata"]["labels"], json!({"c": "d"}));
        assert_eq!(cluster.serve(&User::Admin, "PUT", path, "", &stale.to_string()).0, 409);
    }
}
