//! The few things that are asked of the Kubernetes API, from the node itself: no more than joining and leaving need.
//!
//! Agents reach it through K3s' load balancer and servers at their own listener, both at 127.0.0.1:6444. A server shows the
//! certificate of the cluster's admin, an agent that of its kubelet, which may look at its own node, cordon it and evict
//! its own pods (Kubernetes' node authorizer and NodeRestriction), but not delete it.

use serde_json::{Value, json};

use super::path;
use crate::host::http::{Client, Identity, Limits, Request, Trouble, Trust, Url};
use crate::host::{Host, Unreadable, Why};

/// Where every node finds the API.
pub const ENDPOINT: &str = "https://127.0.0.1:6444";

/// The certificate of the cluster's admin, on servers.
const ADMIN: [&str; 3] = [
    "/var/lib/rancher/k3s/server/tls/client-admin.crt",
    "/var/lib/rancher/k3s/server/tls/client-admin.key",
    "/var/lib/rancher/k3s/server/tls/server-ca.crt",
];
const KUBELET: [&str; 3] = [path::KUBELET_CERTIFICATE, path::KUBELET_KEY, path::SERVER_CA];

/// A list of some hundred pods, whole, has some megabytes.
const LARGEST: usize = 16 << 20;

/// The API, as who we are.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client,
    base: Url,
    /// Whether we are the cluster's admin.
    pub is_admin: bool,
}

/// A Node object, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// The status of its condition Ready: "True", "False", "Unknown".
    pub ready: String,
    /// What the condition says, for people.
    pub message: String,
    /// Keys of its taints.
    pub taints: Vec<String>,
    /// Its kubelet's version, as v1.35.2+k3s1.
    pub version: String,
    /// Whether new pods are kept away.
    pub is_cordoned: bool,
    /// Whether it carries the control plane.
    pub is_server: bool,
    /// Whether it carries a member of etcd.
    pub is_member: bool,
    /// Its addresses, the inner one first.
    pub addresses: Vec<String>,
}

impl Node {
    /// Whether the kubelet says that it can carry pods.
    pub fn is_ready(&self) -> bool {
        self.ready == "True"
    }
}

/// A pod on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its identity: another pod may have the same name later.
    pub uid: String,
    /// The kind of its controller; `None` when nothing would start it again elsewhere.
    pub controller: Option<String>,
    /// Whether it is the image of a file on the node and no object of its own.
    pub is_mirror: bool,
}

impl Pod {
    /// Whether a drain moves it: pods of DaemonSets come back to the node, mirrors are not the API's.
    pub fn moves(&self) -> bool {
        !self.is_mirror && self.controller.as_deref() != Some("DaemonSet")
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What became of an eviction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evicted {
    /// It ends now, or is gone.
    Yes,
    /// Not now: a PodDisruptionBudget forbids it, or several do, or something else; the API's words.
    Held(String),
}

/// What became of something that was to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Yes,
    /// It was not there.
    Absent,
    /// We may not.
    Forbidden,
}

impl Api {
    /// The API as this node reaches it.
    ///
    /// # Errors
    /// K3s has not brought certificates yet, or they are no certificates.
    pub fn of(host: &Host) -> Result<Api, Unreadable> {
        let read = |[certificate, key, ca]: [&str; 3]| {
            Ok::<_, Unreadable>((host.bytes(certificate)?, host.bytes(key)?, host.bytes(ca)?))
        };
        let (is_admin, (certificate, key, ca)) = match read(ADMIN) {
            Ok(files) => (true, files),
            Err(unreadable) if unreadable.is_absence() => (false, read(KUBELET)?),
            Err(unreadable) => return Err(unreadable),
        };
        let identity = Identity { certificate: &certificate, key: &key };
        let client = Client::new(Trust::Bundle(&ca), Some(identity)).map_err(|trouble| Unreadable {
            path: if is_admin { ADMIN[0] } else { KUBELET[0] }.into(),
            why: Why::Failed(trouble.to_string()),
        })?;
        let base = Url::parse(ENDPOINT).expect("it is a URL");
        let limits = Limits { body: LARGEST, ..Limits::default() };
        Ok(Api { client: client.within(limits), base, is_admin })
    }

    /// The same API, by another server.
    pub fn by(&self, server: &Url) -> Api {
        Api { client: self.client.clone(), base: server.clone(), is_admin: self.is_admin }
    }

    /// Where the API's servers answer now; each tells every few seconds that it is there.
    pub async fn servers(&self) -> Result<Vec<Url>, Trouble> {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
        Ok(read_servers(&self.ask("GET", path, None).await?.unwrap_or_default()))
    }

    async fn ask(&self, method: &'static str, path: &str, body: Option<(&'static str, Value)>) -> Answer {
        let mut request = Request::new(method, &self.base.at(path)).header("accept", "application/json");
        if let Some((kind, body)) = body {
            request = request.body(kind, body.to_string().into_bytes());
        }
        let response = self.client.send(request).await?;
        if response.status == 404 {
            return Ok(None);
        }
        let body = response.good()?.body;
        serde_json::from_slice(&body).map(Some).map_err(|_| Trouble::NotHttp("its body is no JSON".into()))
    }

    /// The Node object of a name, when there is one.
    pub async fn node(&self, name: &str) -> Result<Option<Node>, Trouble> {
        Ok(self.ask("GET", &format!("/api/v1/nodes/{name}"), None).await?.map(|node| read_node(&node)))
    }

    /// Names and Nodes of the cluster.
    pub async fn nodes(&self) -> Result<Vec<(String, Node)>, Trouble> {
        let list = self.ask("GET", "/api/v1/nodes", None).await?.unwrap_or_default();
        Ok(items(&list).map(|node| (text(node, "/metadata/name"), read_node(node))).collect())
    }

    /// Keeps new pods away from a node, or lets them come again.
    pub async fn cordon(&self, name: &str, keep_away: bool) -> Result<(), Trouble> {
        let patch = json!({ "spec": { "unschedulable": keep_away } });
        let kind = "application/strategic-merge-patch+json";
        self.ask("PATCH", &format!("/api/v1/nodes/{name}"), Some((kind, patch))).await.map(drop)
    }

    /// The pods of a node, of all namespaces.
    pub async fn pods(&self, node: &str) -> Result<Vec<Pod>, Trouble> {
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
        let list = self.ask("GET", &path, None).await?.unwrap_or_default();
        // A server that knows no selectors gives them all.
        let here = |pod: &&Value| pod.pointer("/spec/nodeName").is_none_or(|at| at == node);
        Ok(items(&list).filter(here).map(read_pod).collect())
    }

    /// Asks for a pod's eviction, which respects PodDisruptionBudgets.
    pub async fn evict(&self, pod: &Pod) -> Result<Evicted, Trouble> {
        let Pod { namespace, name, uid, .. } = pod;
        let eviction = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": { "name": name, "namespace": namespace },
            "deleteOptions": { "preconditions": { "uid": uid } },
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
        match self.ask("POST", &path, Some(("application/json", eviction))).await {
            Ok(_) => Ok(Evicted::Yes),
            // Another pod has the name now.
            Err(Trouble::Status { status: 409, .. }) => Ok(Evicted::Yes),
            Err(Trouble::Status { status, says }) if says.is_empty() => {
                Ok(Evicted::Held(format!("the API answers {status}")))
            }
            Err(Trouble::Status { says, .. }) => Ok(Evicted::Held(message(&says))),
            Err(trouble) => Err(trouble),
        }
    }

    /// Deletes a Node object. K3s then takes the node's password, and on servers its member of etcd, away.
    pub async fn delete_node(&self, name: &str) -> Result<Deleted, Trouble> {
        self.delete(&format!("/api/v1/nodes/{name}")).await
    }

    /// Deletes the secret that binds a node's name to its password.
    pub async fn delete_password(&self, node: &str) -> Result<Deleted, Trouble> {
        self.delete(&format!("/api/v1/namespaces/kube-system/secrets/{node}.node-password.k3s")).await
    }

    async fn delete(&self, path: &str) -> Result<Deleted, Trouble> {
        match self.ask("DELETE", path, None).await {
            Ok(Some(_)) => Ok(Deleted::Yes),
            Ok(None) => Ok(Deleted::Absent),
            Err(Trouble::Status { status: 401 | 403, .. }) => Ok(Deleted::Forbidden),
            Err(trouble) => Err(trouble),
        }
    }
}

/// `None` when there is no such object.
type Answer = Result<Option<Value>, Trouble>;

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The sentence in an object of kind Status, of which the beginning may be all there is.
fn message(says: &str) -> String {
    let status = serde_json::from_str::<Value>(says).unwrap_or_default();
    match text(&status, "/message") {
        empty if empty.is_empty() => says.to_owned(),
        message => message,
    }
}

fn read_node(node: &Value) -> Node {
    let list = |pointer: &str| node.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let ready = list("/status/conditions").find(|condition| condition["type"] == "Ready");
    let of_ready = |key: &str| ready.and_then(|ready| ready[key].as_str()).unwrap_or_default().to_owned();
    let label = |name: &str| node["metadata"]["labels"].get(name).is_some();
    Node {
        ready: of_ready("status"),
        message: of_ready("message"),
        taints: list("/spec/taints").map(|taint| text(taint, "/key")).collect(),
        version: text(node, "/status/nodeInfo/kubeletVersion"),
        is_cordoned: node["spec"]["unschedulable"] == true,
        is_server: label("node-role.kubernetes.io/control-plane") || label("node-role.kubernetes.io/master"),
        is_member: label("node-role.kubernetes.io/etcd"),
        addresses: list("/status/addresses").map(|address| text(address, "/address")).collect(),
    }
}

fn read_servers(slice: &Value) -> Vec<Url> {
    let list = |value: &'_ Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let port = slice.pointer("/ports/0/port").and_then(Value::as_u64).unwrap_or(6443);
    let addresses = list(slice, "endpoints").into_iter().flat_map(|endpoint| list(&endpoint, "addresses"));
    let url = |address: Value| {
        let address = address.as_str()?;
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        Url::parse(&format!("https://{host}:{port}")).ok()
    };
    addresses.filter_map(url).collect()
}

fn read_pod(pod: &Value) -> Pod {
    let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let controller = owners.into_iter().find(|owner| owner["controller"] == true);
    Pod {
        namespace: text(pod, "/metadata/namespace"),
        name: text(pod, "/metadata/name"),
        uid: text(pod, "/metadata/uid"),
        controller: controller.map(|owner| text(owner, "/kind")),
        is_mirror: pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_node_its_condition_its_taints_and_its_version_are_read() {
        let node = read_node(&json!({
            "metadata": { "labels": {
                "node-role.kubernetes.io/control-plane": "true", "node-role.kubernetes.io/etcd": "true",
            } },
            "spec": { "taints": [{ "key": "node.cilium.io/agent-not-ready", "effect": "NoExecute" }] },
            "status": {
                "conditions": [
                    { "type": "DiskPressure", "status": "False", "message": "fine" },
                    { "type": "Ready", "status": "False", "message": "cni plugin not initialized" },
                ],
                "nodeInfo": { "kubeletVersion": "v1.30.2+k3s2" },
                "addresses": [
                    { "type": "InternalIP", "address": "10.0.0.12" }, { "type": "Hostname", "address": "pi-2" },
                ],
            },
        }));
        let expected = Node {
            ready: "False".into(),
            message: "cni plugin not initialized".into(),
            taints: vec!["node.cilium.io/agent-not-ready".into()],
            version: "v1.30.2+k3s2".into(),
            is_cordoned: false,
            is_server: true,
            is_member: true,
            addresses: vec!["10.0.0.12".into(), "pi-2".into()],
        };
        assert_eq!(node, expected);
        assert_eq!(read_node(&json!({})), Node::default());
    }

    #[test]
    fn the_api_s_own_service_tells_where_its_servers_are() {
        let slice = json!({
            "endpoints": [{ "addresses": ["10.0.0.11"] }, { "addresses": ["10.0.0.12", "fd00::11", 5] }],
            "ports": [{ "name": "https", "port": 6444 }],
        });
        let urls: Vec<String> = read_servers(&slice).iter().map(Url::origin).collect();
        assert_eq!(urls, ["https://10.0.0.11:6444", "https://10.0.0.12:6444", "https://[fd00::11]:6444"]);
        assert_eq!(read_servers(&Value::Null), []);
    }

    #[test]
    fn pods_that_come_back_to_the_node_are_not_moved() {
        let pod = |owner: Value, annotations: Value| {
            let metadata = json!({
                "namespace": "a", "name": "b", "uid": "c", "ownerReferences": owner, "annotations": annotations,
            });
            read_pod(&json!({ "metadata": metadata }))
        };
        let owner = |kind: &str, controls: bool| json!([{ "kind": kind, "controller": controls }]);
        assert!(!pod(owner("DaemonSet", true), json!({})).moves());
        assert!(!pod(owner("Node", true), json!({ "kubernetes.io/config.mirror": "x" })).moves());
        assert!(pod(owner("ReplicaSet", true), json!({})).moves());
        let alone = pod(json!(null), json!(null));
        assert!(alone.moves() && alone.controller.is_none());
        assert_eq!(pod(owner("Thing", false), json!({})).controller, None);
        assert_eq!(alone.full_name(), "a/b");
    }

    #[test]
    fn a_refused_eviction_gives_the_budget_s_sentence() {
        let status =
            json!({ "kind": "Status", "message": "Cannot evict pod as it would violate the budget" });
        assert_eq!(message(&status.to_string()), "Cannot evict pod as it would violate the budget");
        assert_eq!(message("{\"cut"), "{\"cut");
    }
}
