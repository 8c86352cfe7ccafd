"""`python -m reft_rs`: the command `reft`."""

from reft_rs.launch import main

if __name__ == "__main__":
    main()
