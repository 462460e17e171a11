"""Who may call, as what, and with how much: roles, certificates, approvals by two operators, quotas."""
