/**
 * The user's files, options or values are wrong. The message is one line: the file (or option), what is wrong, what to do.
 * The command line prints it without a stack trace and ends with exit code 2.
 */
export class BadInput extends Error {
  override readonly name = "BadInput";
}
