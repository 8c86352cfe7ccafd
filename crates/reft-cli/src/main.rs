//! The program `reft`; what it does is in the library beside it.

fn main() {
    reft_cli::main()
}
