"""The file by which a client finds a Kubernetes cluster."""

import json


def use_kubernetes(monkeypatch, folder, url):
    path = folder / "kubernetes.json"  # which is YAML too
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(content))
    # The client reads KUBECONFIG when it is imported.
    name = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(name, str(path))
