"""The frozen encoder, its adapter, the analytic head, and the classifier they make."""
