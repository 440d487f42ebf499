//! The elementary values of AMQP: numbers, short and long strings, tables, bits.

/// A payload ends too early, or holds what the format does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads values from the front of a payload.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins to read.
    pub fn new(octets: &'a [u8]) -> Reader<'a> {
        Reader { rest: octets }
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// So many octets.
    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One octet.
    #[inline]
    pub fn octet(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// Two octets.
    #[inline]
    pub fn short(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Four octets.
    #[inline]
    pub fn long(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Eight octets.
    #[inline]
    pub fn longlong(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// At most 255 octets behind their length.
    #[inline]
    pub fn shortstr(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::from(self.octet()?);
        self.take(length)
    }

    /// Octets behind their length in four.
    #[inline]
    pub fn longstr(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.long()?).map_err(|_| Malformed)?;
        self.take(length)
    }

    /// The octets of a field table without their length. Each entry is looked at.
    pub fn table(&mut self) -> Result<&'a [u8], Malformed> {
        let table = self.longstr()?;
        match super::table::is_valid(table) {
            true => Ok(table),
            false => Err(Malformed),
        }
    }
}

/// Appends a number of two octets.
#[inline]
pub fn put_short(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a number of four octets.
#[inline]
pub fn put_long(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a number of eight octets.
#[inline]
pub fn put_longlong(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a short string; what is beyond 255 octets is left out.
#[inline]
pub fn put_shortstr(out: &mut Vec<u8>, octets: &[u8]) {
    let octets = &octets[..octets.len().min(255)];
    out.push(octets.len() as u8);
    out.extend_from_slice(octets);
}

/// Appends a long string, or a table.
///
/// # Panics
/// If it has 4 GiB or more, which nothing that came in a frame has.
#[inline]
pub fn put_longstr(out: &mut Vec<u8>, octets: &[u8]) {
    put_long(
        out,
        u32::try_from(octets.len()).expect("it came in a frame or is the broker's own"),
    );
    out.extend_from_slice(octets);
}
