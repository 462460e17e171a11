"""The path of one Add Credit: attempts, what head ends and meters say of them, and what stays open."""
