"""The Kubernetes client (to come): never imports TensorFlow, nor any module of `job` but `contract` and `config`."""
