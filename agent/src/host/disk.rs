//! Asks the kernel how full a file system is.

use nix::sys::statvfs::statvfs;

use super::{Host, Unreadable, failed};

/// Room on one file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All that the file system holds.
    pub size: u64,
    /// What an unprivileged writer may still use.
    pub free: u64,
}

impl Host {
    /// The room on the file system that holds `path`. A captured tree cannot tell.
    pub fn room(&self, path: &str) -> Result<Room, Unreadable> {
        let query = format!("statvfs({path})");
        if !self.is_live() {
            return Err(Unreadable::not_live(query));
        }
        let answer = statvfs(path).map_err(|errno| failed(&query, errno))?;
        let unit = answer.fragment_size();
        Ok(Room {
            size: answer.blocks().saturating_mul(unit),
            free: answer.blocks_available().saturating_mul(unit),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_file_system_has_room_for_itself() {
        let room = Host::live().unwrap().room("/").unwrap();
        assert!(room.size > 0 && room.free <= room.size, "{room:?}");
    }
}
