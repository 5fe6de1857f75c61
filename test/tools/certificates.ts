/** Certificates for one test, made by openssl(1) in the layout of nbdkit's --tls-certificates, and keys as psktool's. */
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { succeed } from "./process.js";

export interface CertificateOptions {
  /** The common name. */
  readonly name?: string;
  /** Instead of the common name, as openssl writes it: "/OU=x". */
  readonly subject?: string;
  /** As openssl writes them: "DNS:localhost,IP:127.0.0.1". */
  readonly alternatives?: string;
  /** It was valid for a month of 2020. */
  readonly isExpired?: boolean;
}

const LOCAL_NAMES = "DNS:localhost,IP:127.0.0.1";
const KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/** openssl-ca(1) is the one command that takes dates of the past; it wants a database. */
const CONFIGURATION = `
[ca]
default_ca = test
[test]
database = ./index
serial = ./serial
new_certs_dir = .
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = optional
organizationalUnitName = optional
`;

type Roles = Partial<Readonly<Record<"server" | "client", CertificateOptions>>>;

const BOTH_ROLES: Roles = { server: {}, client: {} };

/** A CA and the certificates that it signs. Close it to remove them all. */
export class Authority {
  readonly #directory: string;
  #certificates = 0;

  private constructor(directory: string) {
    this.#directory = directory;
  }

  static async make(): Promise<Authority> {
    const directory = await mkdtemp(join(tmpdir(), "ca-"));
    const authority = new Authority(directory);
    await mkdir(join(directory, "ca"));
    await writeFile(authority.#ca("config"), CONFIGURATION);
    await writeFile(authority.#ca("index"), "");
    await writeFile(authority.#ca("serial"), "01\n");
    const subject = ["-subj", "/CN=CA of a test", "-addext", "keyUsage=critical,keyCertSign,cRLSign"];
    const output = ["-keyout", authority.#ca("key.pem"), "-out", authority.#ca("cert.pem"), "-days", "2"];
    await succeed("openssl", ["req", "-x509", ...KEY, ...subject, ...output]);
    return authority;
  }

  get caFile(): string {
    return this.#ca("cert.pem");
  }

  /** A directory with a certificate and key for each of these roles, and this CA's own certificate. */
  async issue(roles: Roles = BOTH_ROLES): Promise<string> {
    this.#certificates++;
    const directory = join(this.#directory, `pki${this.#certificates}`);
    await mkdir(directory);
    await copyFile(this.caFile, join(directory, "ca-cert.pem"));
    for (const [role, options] of Object.entries(roles)) await this.#sign(directory, role, options);
    return directory;
  }

  /** Takes back the certificate of that role in a directory that it issued: its list of revoked ones is in `listedIn` then. */
  async revoke(directory: string, role: "server" | "client", listedIn: string): Promise<void> {
    const own = ["ca", "-config", "config", "-cert", "cert.pem", "-keyfile", "key.pem"];
    const cwd = this.#ca(".");
    await succeed("openssl", [...own, "-revoke", join(directory, `${role}-cert.pem`)], { cwd });
    const output = ["-crldays", "2", "-out", join(listedIn, "ca-crl.pem")];
    await succeed("openssl", [...own, "-gencrl", ...output], { cwd });
  }

  async close(): Promise<void> {
    await rm(this.#directory, { recursive: true });
  }

  async #sign(directory: string, role: string, options: CertificateOptions): Promise<void> {
    const { name = role, alternatives = LOCAL_NAMES, isExpired = false } = options;
    const { subject: whole = `/CN=${name}` } = options;
    const request = join(directory, `${role}.csr`);
    const subject = ["-subj", whole, "-addext", `subjectAltName=${alternatives}`];
    const key = join(directory, `${role}-key.pem`);
    await succeed("openssl", ["req", ...KEY, "-keyout", key, "-out", request, ...subject]);
    const dates = isExpired ? ["20200101000000Z", "20200201000000Z"] : ["20200101000000Z", "20491231000000Z"];
    const validity = ["-startdate", dates[0] ?? "", "-enddate", dates[1] ?? ""];
    const signer = ["-config", "config", "-cert", "cert.pem", "-keyfile", "key.pem"];
    const output = ["-in", request, "-out", join(directory, `${role}-cert.pem`), "-notext", "-batch"];
    await succeed("openssl", ["ca", ...signer, ...validity, ...output], { cwd: this.#ca(".") });
  }

  #ca(file: string): string {
    return join(this.#directory, "ca", file);
  }
}

/** What the tests of a suite share; there when its first hook of `before` is done. */
export interface Authorities {
  readonly authority: Authority;
  /** Whom nobody has heard of. */
  readonly stranger: Authority;
  /** A directory with certificates of `authority`. */
  readonly pki: string;
}

/** Two CAs for a suite. @param roles whom `pki` is for */
export function useAuthorities(roles: Roles = BOTH_ROLES): Authorities {
  const made: Partial<{ -readonly [K in keyof Authorities]: Authorities[K] }> = {};
  const get = <K extends keyof Authorities>(name: K): Authorities[K] => {
    const found = made[name];
    if (found === undefined) throw new Error(`there is no ${name} before the suite has begun`);
    return found;
  };
  before(async () => {
    made.authority = await Authority.make();
    made.stranger = await Authority.make();
    made.pki = await made.authority.issue(roles);
  });
  after(async () => {
    await made.authority?.close();
    await made.stranger?.close();
  });
  return {
    get authority() {
      return get("authority");
    },
    get stranger() {
      return get("stranger");
    },
    get pki() {
      return get("pki");
    },
  };
}

/** Writes a file of pre-shared keys. */
export async function writePskFile(path: string, keys: Readonly<Record<string, string>>): Promise<string> {
  const lines = Object.entries(keys).map(([user, key]) => `${user}:${key}\n`);
  await writeFile(path, lines.join(""), { mode: 0o600 });
  return path;
}

export const PSK = "0123456789abcdef".repeat(4);
